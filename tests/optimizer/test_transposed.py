"""Transformers' ``Conv1D``, by a double: its steps are those of ``nn.Linear``, of which it is the transpose."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer.conv1d_double import Conv1D, Net, imported
from optimizer.small_models import same, snapshot
from torch import nn
from torch.distributed.fsdp import fully_shard

import lnb
from lnb_kernels import fused_step


@pytest.fixture(autouse=True)
def transformers() -> Iterator[None]:
    """Transformers is imported."""
    with imported():
        yield


def trained(model: nn.Module, optimizer: lnb.LNB, steps: range = range(6), to_none: bool = True) -> None:
    dtype = next(model.parameters()).dtype
    for seed in steps:
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(8, 5, 12, generator=generator), torch.randn(8, 5, 3, generator=generator)
        optimizer.zero_grad(set_to_none=to_none)
        nn.functional.mse_loss(model(x.to(dtype)), y.to(dtype)).backward()
        optimizer.step()


def pair(dtype: torch.dtype, **settings: Any) -> tuple[list[nn.Module], list[lnb.LNB]]:
    """Models of linear layers and of their twins."""
    models = [Net(transposed).to(dtype) for transposed in (False, True)]
    return models, [lnb.LNB(model, 0.05, **{"block_size": 6, **settings}) for model in models]


def difference(one: nn.Module, other: nn.Module) -> float:
    """The largest, relative to the largest number of the parameter."""
    found = []
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        turned = q.t() if q.shape != p.shape else q
        found.append(float(((p - turned).abs().max() / p.abs().max()).detach()))
    return max(found)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"preset": "paper", "block_size": None},
    {"preset": "paper", "solver": "matrix_free", "block_size": None},
    {"preset": "full_batch", "ridge": 0.1},
    {"trust_region": "spectral"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_steps_are_those_of_a_linear_layer(settings: dict[str, Any]) -> None:
    models, optimizers = pair(torch.float64, **settings)
    for model, optimizer in zip(models, optimizers, strict=True):
        trained(model, optimizer)
    assert difference(*models) <= 1e-11


@pytest.mark.parametrize("route", ["prepared", "fused"])
def test_the_fast_routes_serve_it(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of the CPU, and the stages of a GPU as plain PyTorch; without a copy of a weight or a gradient."""
    if route == "fused":
        monkeypatch.setattr(fused_step, "available", lambda device: True)
    models, optimizers = pair(torch.float32)
    for model, optimizer in zip(models, optimizers, strict=True):
        trained(model, optimizer, range(12))
        assert getattr(optimizer._memory, route)
    assert difference(*models) <= 1e-4
    weight = models[1].fc.weight
    assert weight.shape == (12, 20)
    assert weight.t().is_contiguous()
    assert weight.grad is not None
    assert weight.grad.t().is_contiguous()
    memory = {p.data_ptr() for p in models[1].parameters()} | {p.grad.data_ptr() for p in models[1].parameters()}
    stages = getattr(optimizers[1]._memory, route).popitem()[1]
    moved = stages.standing.parameters
    assert {x.data_ptr() for p in moved for x in (p, p.grad)} == memory


@pytest.mark.parametrize("how", ["part of a vector", "kept gradients", "moved"])
def test_layouts_that_cost_copies(how: str) -> None:
    models, optimizers = pair(torch.float64)
    trained(models[0], optimizers[0])
    model, optimizer = models[1], optimizers[1]
    if how == "part of a vector":
        model = models[1] = Net(True).double()
        flat = nn.utils.parameters_to_vector(model.parameters()).detach()
        nn.utils.vector_to_parameters(flat, model.parameters())
        optimizer = lnb.LNB(model, 0.05, block_size=6)
    trained(model, optimizer, range(3), how != "kept gradients")
    if how == "moved":
        model.fc.weight.data = model.fc.weight.detach().contiguous()
    trained(model, optimizer, range(3, 6), how != "kept gradients")
    assert difference(*models) <= 1e-11
    assert model.fc.weight.t().is_contiguous() == (how != "part of a vector")
    assert model.fc.weight.grad.stride() == model.fc.weight.stride()
    if how == "part of a vector":
        assert torch.equal(flat, nn.utils.parameters_to_vector(model.parameters()))


def test_frozen_weights_stay_as_they_lie_until_they_move() -> None:
    model, expected = Net(True).double(), Net(False).double()
    optimizers = []
    for net in (model, expected):
        net.fc.weight.requires_grad_(False)
        optimizers.append(lnb.LNB(net, 0.05, block_size=6))
        trained(net, optimizers[-1], range(2))
    assert model.fc.weight.is_contiguous()
    for net, optimizer in zip((model, expected), optimizers, strict=True):
        net.fc.weight.requires_grad_(True)
        trained(net, optimizer, range(2, 5))
    assert model.fc.weight.t().is_contiguous()
    assert difference(expected, model) <= 1e-11


def test_masters_and_frozen_weights() -> None:
    models, optimizers = pair(torch.bfloat16, master_weights=True)
    for model, optimizer in zip(models, optimizers, strict=True):
        trained(model, optimizer, range(3))
        model.proj.weight.requires_grad_(False)
        kept = model.proj.weight.detach().clone()
        trained(model, optimizer, range(3, 5))
        assert torch.equal(model.proj.weight, kept)
    assert difference(*models) <= 0.02
    assert optimizers[1].state[models[1].fc.weight]["master"].shape == (20, 12)


def test_copies_and_saved_states_go_on_bit_for_bit() -> None:
    (_, model), (_, optimizer) = pair(torch.float32)
    trained(model, optimizer, range(4))
    copied_model, copied = copy.deepcopy((model, optimizer))
    stream = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream)
    assert saved["model"]["fc.weight"].shape == (12, 20)
    resumed_model = Net(True)
    resumed_model.load_state_dict(saved["model"])
    resumed = lnb.LNB(resumed_model, 0.05, block_size=6)
    resumed.load_state_dict(saved["optimizer"])
    for one, other in ((model, optimizer), (copied_model, copied), (resumed_model, resumed)):
        trained(one, other, range(4, 8))
    assert same(snapshot(copied_model, copied), snapshot(model, optimizer))
    assert same(snapshot(resumed_model, resumed), snapshot(model, optimizer))


def test_reports_and_moments(tmp_path: Path) -> None:
    models, optimizers = pair(torch.float64, block_size=None)
    for model, optimizer in zip(models, optimizers, strict=True):
        trained(model, optimizer, range(2))
    row = next(row for row in optimizers[1].coverage().rows if row.name == "fc.weight")
    assert row.shape == (12, 20)
    assert row.metric == "second moment"
    assert "transposed weight 'fc': 12 inputs and the bias" in row.reason
    assert optimizers[1].plan().state_bytes == optimizers[0].plan().state_bytes
    written = []
    for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        for source in (optimizer, (model, optimizer.state_dict())):
            path = tmp_path / f"{i}.safetensors"
            lnb.export_moments(source, path)
            written.append(lnb.load_moments(path)["fc"])
    for moment in written[1:]:
        torch.testing.assert_close(moment.second_moment, written[0].second_moment)
        assert moment.info.d_out == 20
    gathered = lnb.gather_moments(models[1], [torch.randn(4, 12, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"'fc\.weight' as \[d_in, d_out\]"):
        lnb.moments.quantize(models[1], gathered, 4)
    with pytest.raises(ValueError, match=r"'fc\.weight' as \[d_in, d_out\]"):
        lnb.moments.regmean([models[1], models[1]], [gathered, gathered])


def test_detached_and_compiled_layers() -> None:
    (_, model), (_, optimizer) = pair(torch.float32)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    trained(compiled, optimizer, range(3))
    trained(plain, lnb.LNB(plain, 0.05, block_size=6), range(3))
    assert difference(model, plain) <= 1e-5
    x = torch.randn(2, 12)
    expected = model(x)
    lnb.detach(model)
    assert type(model.fc) is Conv1D
    torch.testing.assert_close(model(x), expected)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("early", [True, False])
def test_shards_of_its_inputs_are_left_to_adams_rule(early: bool) -> None:
    """``fully_shard`` cuts dimension 0, before the optimizer is made or after."""
    model = Net(True)
    optimizer = lnb.LNB(model, 0.05) if early else None
    for child in (model.fc, model.proj, model):
        fully_shard(child)
    optimizer = lnb.LNB(model, 0.05) if optimizer is None else optimizer
    trained(model, optimizer, range(3))
    rows = {row.name: row for row in optimizer.coverage().rows}
    assert rows["fc.weight"].metric == "adamw"
    assert "[d_in, d_out]" in rows["fc.weight"].reason
    assert rows["head.weight"].metric == "second moment"
    assert optimizer.diagnostics()["steps"] == 3
