"""Parameters that a trainer cuts through rows, or exchanges, are refused, with the reason, before anything moves."""

from __future__ import annotations

import pytest
import torch
from optimizer.small_models import batches, copied, mixed, same, train
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import lnb
from lnb.layers.capture import Capture


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("original", [True, False])
def test_fsdp1_is_refused(original: bool) -> None:
    model = FullyShardedDataParallel(mixed(), use_orig_params=original, device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"FlatParameter of FullyShardedDataParallel \(FSDP1\)"):
        lnb.LNB(model)


def test_zero_3_is_refused() -> None:
    model = mixed()
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number  # as deepspeed.zero.Init marks them
    with pytest.raises(TypeError, match="DeepSpeed ZeRO stage 3"):
        lnb.LNB(model)


def test_flat_partitions_in_the_groups_are_refused() -> None:
    model = mixed()
    optimizer = lnb.LNB(model)
    for group in optimizer.param_groups:  # as DeepSpeed's ZeRO optimizer does
        group["params"] = [nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))]
    before = copied(dict(model.named_parameters()))
    with pytest.raises(RuntimeError, match=r"the optimizer's groups got other parameters .* DeepSpeed ZeRO"):
        train(model, optimizer, batches(1))
    assert same(copied(dict(model.named_parameters())), before)


def test_other_parameters_in_the_model_are_refused() -> None:
    model = mixed()
    optimizer = lnb.LNB(model)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    with pytest.raises(RuntimeError, match="the model got other parameters since LNB was built"):
        train(model, optimizer, batches(1))


def test_probes_of_offloaded_weights_lie_where_forward_passes_run() -> None:
    capture, weight = Capture(4), nn.Parameter(torch.zeros(2, 4))
    capture.runs_on = torch.device("meta")  # any other device
    capture.switch(weight, moments=True, channels=False, inputs=False)
    capture.read(weight, 0.5, 2, None)
    assert capture.start is not None
    assert capture.start.device.type == "meta"
    assert capture.probe_for(weight) is None
    gathered = nn.Parameter(weight.detach().to("meta"))
    assert capture.probe_for(gathered) is capture.probe
