"""``fused_step.apply_`` in plain PyTorch, its arguments, and its registration. tests/cusim has its kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fused_apply_support import Model, model, params_of, stepped, thetas_of
from support import assert_close_to_reference
from torch import Tensor

from lnb_kernels.fused_step import Biases, Others, Weights, apply_

SMALL: dict[str, Any] = {"weights": [(2, 3), (4, 2, 2)], "biases": [2], "others": [(3,), (2, 2)]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference(dtype: torch.dtype) -> None:
    before = model()
    if dtype == torch.float64:
        before = before.copy(dtype)
    truth, after = stepped(before), before.copy()
    after.step()
    found = {"thetas": thetas_of(after), "averages": after.others.averages, "squares": after.others.squares}
    for name, tensors in found.items():
        for tensor, right in zip(tensors, truth[name], strict=True):
            assert tensor.dtype == dtype
            assert_close_to_reference(tensor, right, right.to(dtype), factor=8.0)


def test_a_short_factor_near_one_keeps_its_low_bits() -> None:
    """Without weight decay the weight is multiplied by the factor: 1 - 1e-9 changes a float64 weight by just that."""
    weight = torch.ones(1, 1, dtype=torch.float64)
    rows = torch.ones(1, dtype=torch.float64)
    part = Weights([weight], [torch.zeros(1, 1)], [rows], [0])
    apply_(part, Biases(), Others(), rows, [0.0], [0.5], shorter=1 - 1e-9 * rows)
    assert weight.item() == pytest.approx(1 - 1e-9, abs=1e-15)


def test_nothing_to_move() -> None:
    apply_(Weights(), Biases(), Others(), torch.ones(0, dtype=torch.float64), [], [])


def test_versions_count_and_meta_tensors_pass() -> None:
    given = model(torch.bfloat16, masters=True, **SMALL)
    versions = [tensor._version for tensor in given.written()]
    given.step()
    assert all(tensor._version > version for tensor, version in zip(given.written(), versions, strict=True))

    def on_meta(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to("meta")
        if isinstance(value, (list, tuple)):
            return [on_meta(entry) for entry in value]
        if isinstance(value, (Weights, Biases, Others)):
            return replace(value, **{name: on_meta(entry) for name, entry in vars(value).items()})
        return value

    Model(**{name: on_meta(value) for name, value in vars(given).items()}).step()


def test_opcheck() -> None:
    calls: list[tuple[Any, ...]] = []
    overload = torch.ops.lnb_kernels.fused_step_apply_.default

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is overload:
                calls.append(args)
            return func(*args, **(kwargs or {}))

    given = model(torch.bfloat16, masters=True, **SMALL)
    given.ok = torch.tensor(True)
    with Recorded():
        given.step()
    torch.library.opcheck(overload, calls[0], test_utils=("test_schema", "test_faketensor"))


def test_compiles() -> None:
    given, expected = model(**SMALL), model(**SMALL).copy()
    expected = given.copy()
    torch.compile(given.step, backend="aot_eager", fullgraph=True)()
    expected.step()
    assert all(torch.equal(*pair) for pair in zip(params_of(given), params_of(expected), strict=True))


def bad(part: str, **changes: Any) -> dict[str, Any]:
    given = model(**SMALL)
    if part:
        return vars(replace(given, **{part: replace(getattr(given, part), **changes)}))
    return vars(replace(given, **changes))


wide = torch.ones(4, dtype=torch.float64)
ones = torch.ones(2)
BAD = [
    ("weights", {"params": 3}, TypeError, "weights.params must be a list of tensors"),
    ("weights", {"directions": [ones]}, ValueError, "weights.directions has 1 tensors and weights.params has 2"),
    ("weights", {"directions": [torch.ones(2, 3), torch.ones(4, 3)]}, ValueError, r"directions\[1\] has shape \(4, 3\)"),
    ("weights", {"row_scales": [ones]}, ValueError, "weights.row_scales has 1 tensors"),
    ("weights", {"row_scales": [ones, ones]}, ValueError, r"row_scales\[1\] has shape \(2,\), allowed is one per row"),
    ("weights", {"row_scales": [ones, torch.ones(4).half()]}, TypeError, r"row_scales\[1\] has dtype torch.float16"),
    ("weights", {"layers": [0]}, ValueError, "weights.layers has 1 entries"),
    ("weights", {"layers": [0, 4]}, ValueError, "weights.layers has the entry 4"),
    ("weights", {"layers": [0, True]}, TypeError, "weights.layers must be a list of ints"),
    ("weights", {"groups": [0, 2]}, ValueError, "weights.groups has the entry 2"),
    ("weights", {"masters": [None]}, ValueError, "weights.masters has 1 entries"),
    ("weights", {"masters": [torch.ones(2, 3), None]}, TypeError, r"weights.masters\[0\] has dtype torch.float32 beside"),
    ("weights", {"params": [torch.ones(2, 3, device="meta"), torch.ones(4, 2, 2)]}, ValueError, "use one device"),
    ("biases", {"directions": [torch.ones(2, 1)]}, ValueError, r"biases.directions\[0\] has shape \(2, 1\)"),
    ("others", {"gradients": [ones, ones]}, ValueError, r"others.gradients\[0\] has shape"),
    ("others", {"averages": [torch.ones(3).half(), torch.ones(2, 2)]}, TypeError, r"others.averages\[0\] has dtype"),
    ("others", {"squares": [torch.ones(3).double(), torch.ones(2, 2)]}, TypeError, r"others.squares\[0\] has dtype"),
    ("others", {"shares": None}, TypeError, "others.shares must be a torch.Tensor, got NoneType"),
    ("others", {"corrections": wide}, ValueError, r"others.corrections has shape \(4,\)"),
    ("others", {"shares": ones}, TypeError, "others.shares has dtype torch.float32; allowed is torch.float64"),
    ("others", {"finite": ones}, TypeError, "others.finite must be None or a bool tensor"),
    ("others", {"finite": torch.ones(3) > 0}, ValueError, r"others.finite has shape \(3,\)"),
    ("", {"weights": None}, TypeError, "weights must be a fused_step.Weights, got NoneType"),
    ("", {"scales": torch.ones(4)}, TypeError, "scales has dtype torch.float32; allowed is torch.float64"),
    ("", {"scales": wide.view(2, 2)}, ValueError, r"scales has shape \(2, 2\)"),
    ("", {"shorter": wide[:3]}, ValueError, r"shorter has shape \(3,\)"),
    ("", {"lr": 0.5}, TypeError, "lr must be a list"),
    ("", {"lr": [0.5]}, ValueError, "weight_decay has 2 entries and lr has 1"),
    ("", {"lr": [0.5, float("nan")]}, ValueError, r"lr\[1\]=nan is not allowed"),
    ("", {"weight_decay": [0.5, ones]}, ValueError, r"weight_decay\[1\] has shape \(2,\)"),
    ("", {"rule": None}, ValueError, "rule is None, but others has 2 parameters"),
    ("rule", {"beta": 1.5}, ValueError, "rule.beta=1.5 is not allowed"),
    ("rule", {"epsilon": -1.0}, ValueError, "rule.epsilon=-1.0 is not allowed"),
    ("", {"ok": ones[0]}, TypeError, "ok must be None or a bool tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "changes", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_arguments(part: str, changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = bad(part, **changes)
    before = [t.clone() for t in arguments["others"].squares]
    with pytest.raises(kind, match=r"fused_step.apply_: .*" + message):
        apply_(**arguments)
    assert all(torch.equal(*pair) for pair in zip(before, arguments["others"].squares, strict=True))


def test_what_may_not_be_written() -> None:
    given = model(**SMALL)
    given.weights.params[0].requires_grad_()
    with pytest.raises(RuntimeError, match="params require grad"):
        given.step()
    memory = torch.zeros(8)
    shared = replace(model(**SMALL).others, averages=[memory[:3], memory[2:6].view(2, 2)])
    with pytest.raises(ValueError, match="overlap in memory"):
        replace(model(**SMALL), others=shared).step()
    given = model(weights=[(2, 2), (2, 2)], biases=[], others=[])
    twice = replace(given, weights=replace(given.weights, params=[given.weights.params[0]] * 2))
    with pytest.raises(ValueError, match="holds one tensor twice"):
        twice.step()
