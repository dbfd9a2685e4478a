"""What PyTorch's tests ask of every optimizer, over descriptions of LNB and, as a control, of AdamW and SGD.

Names follow ``test_optim.py`` of PyTorch, which is in no wheel; the code is written anew, for parameters of linear layers.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("expecttest", reason="expecttest, which PyTorch's test modules import, is not installed")

from peers.described import DESCRIBED, linear_model
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db, optims
from torch.testing._internal.common_utils import TestCase

INFOS = [DESCRIBED, *(info for info in optim_db if info.name in ("AdamW", "SGD"))]
_FOREIGN = ("maximize", "capturable", "differentiable", "foreach", "fused")


def kwargs_of(info: Any, device: Any) -> Iterator[dict[str, Any]]:
    """Settings of the description, but for those that LNB refuses or that mean nothing to it."""
    for given in info.optim_inputs_func(device=device):
        if not any(given.kwargs.get(name) for name in _FOREIGN):
            kwargs = {name: value for name, value in given.kwargs.items() if name not in _FOREIGN}
            yield {"lr": 0.01, **kwargs} if info is not DESCRIBED else kwargs


def settings(check: Callable[..., None]) -> Callable[..., None]:
    """``check`` for all of them."""

    def checked(self: Any, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for kwargs in kwargs_of(optim_info, device):
            with self.subTest(**kwargs):
                torch.manual_seed(0)
                check(self, optim_info.optim_cls, dtype, kwargs)

    checked.__name__ = check.__name__
    return checked


def loss_of(model: nn.Module, number: int = 0) -> Tensor:
    first = next(model.parameters())
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    out: Tensor = model(x.to(first.dtype)).square().mean()
    return out


def step(model: nn.Module, optimizer: Any, number: int = 0) -> float:
    optimizer.zero_grad()
    loss = loss_of(model, number)
    loss.backward()
    optimizer.step()
    return loss.item()


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def made(cls: Any, dtype: torch.dtype, kwargs: dict[str, Any], steps: int = 0) -> tuple[nn.Sequential, Any]:
    torch.manual_seed(1)
    model = linear_model(dtype)
    optimizer = cls(model.parameters(), **copy.deepcopy(kwargs))
    for number in range(steps):
        step(model, optimizer, number)
    return model, optimizer


class TestOptimizer(TestCase):  # type: ignore[misc]
    """One optimizer at a time."""

    @optims(INFOS, dtypes=[torch.float32])
    def test_goes_right_direction(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for i, kwargs in enumerate(kwargs_of(optim_info, device)):
            for makers in [[], *optim_info.scheduler_inputs] if i == 0 else [optim_info.scheduler_inputs[0]]:
                model = linear_model(dtype, contiguous=i % 2 == 0)
                optimizer = optim_info.optim_cls(model.parameters(), **copy.deepcopy(kwargs))
                schedulers = [make(optimizer) for make in makers]
                before = loss_of(model).item()
                for _ in range(12):
                    loss = step(model, optimizer)
                    for scheduler in schedulers:
                        scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
                self.assertLess(loss_of(model).item(), before, msg=str(kwargs))

    @optims(INFOS, dtypes=[torch.float32])
    def test_param_group_with_lrscheduler_goes_right_direction(
        self, device: Any, dtype: torch.dtype, optim_info: Any
    ) -> None:
        for makers in optim_info.scheduler_inputs:
            model = linear_model(dtype)
            groups = [
                {"params": model[0].parameters()},
                {"params": [*model[1].parameters(), *model[3].parameters()], "lr": 0.02},
            ]
            optimizer = optim_info.optim_cls(groups, lr=0.01)
            schedulers = [make(optimizer) for make in makers]
            before = loss_of(model).item()
            for _ in range(20):
                loss = step(model, optimizer)
                for scheduler in schedulers:
                    scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
            self.assertLess(loss_of(model).item(), before)
            self.assertEqual(optimizer.param_groups[1]["lr"], 2 * optimizer.param_groups[0]["lr"])

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_tensor_lr(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        lr = float(kwargs.get("lr", 0.1))
        plain, by_number = made(cls, dtype, {**kwargs, "lr": lr})
        other, by_tensor = made(cls, dtype, {**kwargs, "lr": torch.tensor(lr, dtype=torch.float64)})
        for number in range(4):
            step(plain, by_number, number)
            step(other, by_tensor, number)
        self.assertEqual(values(plain), values(other))
        self.assertIsInstance(by_tensor.param_groups[0]["lr"], Tensor)

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_param_groups_lr(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        model = linear_model(dtype)
        still = [*model[0].parameters(), *model[1].parameters()]
        optimizer = cls([{"params": still, "lr": 0.0}, {"params": model[3].parameters()}], **kwargs)
        before = values(model)
        for number in range(3):
            step(model, optimizer, number)
        moved = [not torch.equal(p, q) for p, q in zip(values(model), before, strict=True)]
        self.assertEqual(moved, [False] * 4 + [True] * 2)

    @optims(INFOS, dtypes=[torch.float64])
    def test_param_groups_weight_decay(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """Decay shrinks the weights of its group, and no others."""
        cls = optim_info.optim_cls
        plain, without = made(cls, dtype, {"lr": 0.01, "weight_decay": 0.0})
        torch.manual_seed(1)
        model = linear_model(dtype)
        groups = [
            {"params": [*model[0].parameters(), *model[1].parameters()]},
            {"params": model[3].parameters(), "weight_decay": 0.9},
        ]
        decayed = cls(groups, lr=0.01, weight_decay=0.0)
        step(plain, without)
        step(model, decayed)
        same = [torch.equal(p, q) for p, q in zip(values(model), values(plain), strict=True)]
        self.assertEqual(same, [True] * 4 + [False] * 2)
        self.assertLess(model[3].weight.norm(), plain[3].weight.norm())

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_step_is_noop_when_params_have_no_grad(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        model, optimizer = made(cls, dtype, kwargs)
        before = values(model)
        optimizer.step()
        self.assertEqual(values(model), before)

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_step_is_noop_for_zero_grads(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        if kwargs.get("weight_decay", 0.01 if cls.__name__ == "AdamW" else 0.0):
            return
        model, optimizer = made(cls, dtype, kwargs)
        before = values(model)
        (loss_of(model) * 0).backward()
        optimizer.step()
        self.assertEqual(values(model), before)

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_optimizer_can_be_printed(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        _, optimizer = made(cls, dtype, kwargs)
        self.assertIn(cls.__name__, repr(optimizer))
        self.assertIn("lr", repr(optimizer))

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_state_dict_deterministic(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        model, optimizer = made(cls, dtype, kwargs, steps=3)
        other, second = made(cls, dtype, kwargs)
        other.load_state_dict(model.state_dict())
        saved = copy.deepcopy(optimizer.state_dict())
        second.load_state_dict(saved)
        self.assertEqual(saved, optimizer.state_dict())
        for number in range(3, 14):
            step(model, optimizer, number)
            step(other, second, number)
        self.assertEqual(values(model), values(other), rtol=0, atol=0)
        self.assertEqual(optimizer.state_dict(), second.state_dict())

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_save_load_equality_with_weights_only(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        _, optimizer = made(cls, dtype, kwargs, steps=2)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        self.assertEqual(loaded, optimizer.state_dict())
        made(cls, dtype, kwargs)[1].load_state_dict(loaded)

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_can_load_from_to_named_state_dict(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        model, optimizer = made(cls, dtype, kwargs, steps=2)
        torch.manual_seed(1)
        other = linear_model(dtype)
        named = cls(other.named_parameters(), **kwargs)
        other.load_state_dict(model.state_dict())
        named.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        self.assertEqual(named.param_groups[0]["param_names"], [name for name, _ in other.named_parameters()])
        step(model, optimizer, 5)
        step(other, named, 5)
        self.assertEqual(values(model), values(other), rtol=0, atol=0)
        optimizer.load_state_dict(copy.deepcopy(named.state_dict()))
        step(model, optimizer, 6)
        step(other, named, 6)
        self.assertEqual(values(model), values(other), rtol=0, atol=0)

    @optims(INFOS, dtypes=[torch.float64])
    @settings
    def test_load_state_dict_of_another_precision(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        _, single = made(cls, torch.float32, kwargs, steps=2)
        model, double = made(cls, dtype, kwargs)
        double.load_state_dict(single.state_dict())
        step(model, double, 3)
        self.assertTrue(all(p.dtype == dtype and p.isfinite().all() for p in values(model)))

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_non_empty_state(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        if cls.__name__ == "SGD" and not kwargs.get("momentum"):
            return
        model, optimizer = made(cls, dtype, kwargs, steps=1)
        for parameter in model.parameters():
            self.assertTrue(optimizer.state[parameter])
            self.assertTrue(all(isinstance(value, Tensor) for value in optimizer.state[parameter].values()))

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_deepcopy_copies_all_public_attrs(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        model, optimizer = made(cls, dtype, kwargs, steps=2)
        other, second = copy.deepcopy((model, optimizer))
        public = [{name for name in vars(o) if not name.startswith("_")} for o in (optimizer, second)]
        self.assertEqual(*public)
        step(model, optimizer, 5)
        step(other, second, 5)
        self.assertEqual(values(model), values(other), rtol=0, atol=0)

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_pickle(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        model, optimizer = made(cls, dtype, kwargs, steps=2)
        other, second = pickle.loads(pickle.dumps((model, optimizer)))
        step(model, optimizer, 5)
        step(other, second, 5)
        self.assertEqual(values(model), values(other), rtol=0, atol=0)

    @optims(INFOS, dtypes=[torch.float32])
    @settings
    def test_closure(self, cls: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
        model, optimizer = made(cls, dtype, kwargs)
        plain, reference = made(cls, dtype, kwargs)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            self.assertTrue(loss.requires_grad)
            loss.backward()
            return loss

        self.assertEqual(optimizer.step(closure).item(), step(plain, reference))
        self.assertEqual(values(model), values(plain), rtol=0, atol=0)

    @optims(INFOS, dtypes=[torch.float32])
    def test_zero_grad_set_to_none(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01}, steps=1)
        optimizer.zero_grad(set_to_none=False)
        self.assertTrue(all(p.grad is not None and not p.grad.any() for p in model.parameters()))
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        self.assertTrue(all(p.grad is None for p in model.parameters()))

    @optims(INFOS, dtypes=[torch.float32])
    def test_mixed_dtypes_in_one_group(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01})
        model[3].to(torch.bfloat16)
        before = values(model)
        x = torch.randn(12, 5)
        model[3](model[:3](x).bfloat16()).float().square().mean().backward()
        optimizer.step()
        after = values(model)
        self.assertEqual([p.dtype for p in after], [torch.float32] * 4 + [torch.bfloat16] * 2)
        self.assertFalse(any(torch.equal(p, q) for p, q in zip(before[::2], after[::2], strict=True)))

    @optims(INFOS, dtypes=[torch.float32])
    def test_grad_scaler_skips_what_is_infinite(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01})
        plain, reference = made(optim_info.optim_cls, dtype, {"lr": 0.01})
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for number, factor in enumerate((1.0, float("inf"), 1.0)):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, number) * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            if factor == 1.0:
                step(plain, reference, number)
        self.assertEqual(values(model), values(plain))

    @optims(INFOS, dtypes=[torch.float32])
    def test_averaged_model(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """``AveragedModel`` copies the model in the middle of training, and is used beside it."""
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01}, steps=1)
        averaged = torch.optim.swa_utils.AveragedModel(model)
        seen = []
        for number in range(3):
            step(model, optimizer, number)
            averaged.update_parameters(model)
            seen.append(values(model))
            averaged(torch.ones(2, 5)).sum().backward()  # must not count as rows of the model's next step
        means = [torch.stack(same).mean(0) for same in zip(*seen, strict=True)]
        self.assertEqual([p.detach() for p in averaged.parameters()], means)
        plain, reference = made(optim_info.optim_cls, dtype, {"lr": 0.01}, steps=1)
        for number in range(3):
            step(plain, reference, number)
        self.assertEqual(values(model), values(plain), rtol=0, atol=0)

    @optims([info for info in INFOS if info.optim_error_inputs_func is not None], dtypes=[torch.float32])
    def test_errors(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for wrong in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = wrong.optimizer_error_input
            if wrong.error_on is not OptimizerErrorEnum.CONSTRUCTION_ERROR or issubclass(wrong.error_type, Warning):
                continue
            model = linear_model(dtype)
            params = model.parameters() if given.params is None else given.params
            with self.assertRaisesRegex(wrong.error_type, wrong.error_regex):
                optim_info.optim_cls(params, **given.kwargs)

    @optims(INFOS, dtypes=[torch.float32])
    def test_add_param_group_takes_no_parameter_twice(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01})
        with self.assertRaisesRegex(ValueError, "more than one parameter group"):
            optimizer.add_param_group({"params": [model[0].weight]})
        self.assertEqual(len(optimizer.param_groups), 1)

    # -- hooks ----------------------------------------------------------------------------------------------------------

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_all_hooks(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01})
        seen: list[str] = []
        handles = [
            register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
            register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
            optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
            optimizer.register_step_post_hook(lambda *_: seen.append("post")),
        ]
        step(model, optimizer)
        self.assertEqual(seen, ["global pre", "pre", "post", "global post"])
        for handle in handles:
            handle.remove()
        step(model, optimizer)
        self.assertEqual(len(seen), 4)

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_pre_hook_may_replace_arguments(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01})
        loss = loss_of(model)
        loss.backward()
        optimizer.register_step_pre_hook(lambda own, args, kwargs: ((own, lambda: loss), {}))
        self.assertIs(optimizer.step(), loss)

    @optims(INFOS, dtypes=[torch.float32])
    def test_state_dict_pre_post_hook(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        _, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01}, steps=1)
        seen: list[str] = []

        def added(own: Any, saved: dict[str, Any]) -> dict[str, Any]:
            seen.append("post")
            return {**saved, "note": 1}

        optimizer.register_state_dict_pre_hook(lambda own: seen.append("pre"))
        optimizer.register_state_dict_post_hook(added)
        optimizer.register_state_dict_post_hook(lambda own, saved: seen.append("first"), prepend=True)
        self.assertEqual(optimizer.state_dict()["note"], 1)
        self.assertEqual(seen, ["pre", "first", "post"])

    @optims(INFOS, dtypes=[torch.float32])
    def test_load_state_dict_pre_post_hook(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        model, optimizer = made(optim_info.optim_cls, dtype, {"lr": 0.01}, steps=1)
        saved = copy.deepcopy(optimizer.state_dict())
        seen: list[str] = []

        def slower(own: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            seen.append("pre")
            changed = copy.deepcopy(state_dict)
            changed["param_groups"][0]["lr"] = 0.002
            return changed

        optimizer.register_load_state_dict_pre_hook(slower)
        optimizer.register_load_state_dict_pre_hook(lambda own, state_dict: seen.append("first"), prepend=True)
        optimizer.register_load_state_dict_post_hook(lambda own: seen.append(f"post {own.param_groups[0]['lr']}"))
        optimizer.load_state_dict(saved)
        self.assertEqual(seen, ["first", "pre", "post 0.002"])
        self.assertEqual(saved["param_groups"][0]["lr"], 0.01)
        step(model, optimizer)


instantiate_device_type_tests(TestOptimizer, globals(), only_for="cpu")
