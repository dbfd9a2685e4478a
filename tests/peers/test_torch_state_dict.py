"""PyTorch's own comparisons of state dicts, for states of LNB under the names of ``torch.distributed.checkpoint``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("expecttest", reason="expecttest, which PyTorch's test modules import, is not installed")

from optimizer.small_models import batches, mixed, train
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.testing._internal.common_utils import TestCase
from torch.testing._internal.distributed.common_state_dict import VerifyStateDictMixin

import lnb


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    return [
        {"params": biases, "lr": 0.02},
        {"params": [p for name, p in model.named_parameters() if not name.endswith("bias")]},
    ]


class TestStateDict(TestCase, VerifyStateDictMixin):  # type: ignore[misc]
    """The names of the checks are PyTorch's: ``_verify_msd`` of the model's state, ``_verify_osd`` of the optimizer's."""

    def _verify(self, wrap: Any = lambda model: model, groups: Any = None, frozen: tuple[str, ...] = ()) -> None:
        options = StateDictOptions(ignore_frozen_params=bool(frozen))
        pairs = []
        for i in range(3):
            model = mixed()
            for name in frozen:
                model.get_parameter(name).requires_grad_(False)
            params = None if groups is None else groups(model)
            pairs.append((model, wrap(model) if i else model, lnb.LNB(model, 0.05, params=params)))
        (model, plain, optimizer), (other, wrapped, second), (_, fresh, third) = pairs
        for net, opt in ((plain, optimizer), (wrapped, second)):
            train(net, opt, batches(3))
        found = get_state_dict(wrapped, optimizers=second, options=options)
        self._verify_msd(model.state_dict(), found[0], options)
        self._verify_osd(model, optimizer, optimizer.state_dict(), copy.deepcopy(found[1]))
        self._verify_osd_by_load(fresh, optimizer, third, found[1])
        set_state_dict(
            fresh, optimizers=third, model_state_dict=found[0], optim_state_dict=found[1],
            options=StateDictOptions(strict=not frozen),
        )  # fmt: skip
        for net, opt in ((wrapped, second), (fresh, third)):
            train(net, opt, batches(2, seed=8))
        self.assertEqual(list(other.parameters()), list(pairs[2][0].parameters()), rtol=0, atol=0)

    def test_single_gpu(self) -> None:
        self._verify()

    def test_multi_param_groups(self) -> None:
        self._verify(groups=two_groups)

    def test_frozen_parameters(self) -> None:
        self._verify(frozen=("3.weight",))

    def test_activation_ckpt_fqns(self) -> None:
        def wrap(model: nn.Sequential) -> nn.Sequential:
            model[3] = checkpoint_wrapper(model[3])
            return model

        self._verify(wrap)

    def test_compiled(self) -> None:
        self._verify(lambda model: torch.compile(model, backend="eager"))

    def test_flattened_osd(self) -> None:
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        models = [mixed(), mixed()]
        first, second = (lnb.LNB(model, 0.05, params=two_groups(model)) for model in models)
        train(models[0], first, batches(3))
        flat = get_optimizer_state_dict(models[0], first, options=options)
        self.assertIn("state.0.weight.momentum", flat)
        set_state_dict(
            models[1],
            optimizers=second,
            model_state_dict=models[0].state_dict(),
            optim_state_dict=flat,
            options=options,
        )
        self.assertEqual(first.state_dict(), second.state_dict())

    def test_setting_meta_device_model(self) -> None:
        """A model that is made on the meta device, loaded, and trained on with an optimizer of its own."""
        source = mixed()
        with torch.device("meta"):
            model = mixed()
        model.load_state_dict(source.state_dict(), assign=True)
        for net in (model, source):
            train(net, lnb.LNB(net), batches(2))
        self.assertEqual(list(model.parameters()), list(source.parameters()), rtol=0, atol=0)
