"""A call that fails has changed nothing: what is wrong with a later argument is found before the first write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_calls import CALLS, PLACES, replaced, tensors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import lnb_kernels as lk
from lnb_kernels import _native, multi_tensor

WRITERS = [op for op, call in CALLS.items() if call.written]
FLOATING = [(op, name, place) for op, name, place in PLACES if op in WRITERS and name != "ok"]
BESIDE_PLAIN = [place for place in PLACES if place[0] in WRITERS]
"""Where another tensor is written than the one in this place."""
needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
WHERE_NATIVE = pytest.param("native", marks=needs_native)


def fake(x: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(x)


def two(x: Tensor) -> Tensor:
    return TwoTensor(x, x.clone())


def misaligned(*shape: int) -> Tensor:
    """Ones in float32, one byte behind an address that would be aligned."""
    count = torch.Size(shape).numel()
    memory = torch.frombuffer(bytearray(4 * count + 1), dtype=torch.float32, offset=1, count=count)
    return memory.fill_(1).view(shape)


def unchanged_by_failure(op: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """The call fails with this error, and every plain tensor among its arguments keeps its values and its version."""
    real = [(name, t) for name, _, t in tensors(arguments) if not isinstance(t, (FakeTensor, TwoTensor))]
    before = [(t.clone(), None if t.is_inference() else t._version) for _, t in real]
    with pytest.raises(error, match=message):
        CALLS[op].function(**arguments)
    for (name, tensor), (values, version) in zip(real, before, strict=True):
        assert torch.equal(tensor, values), name
        assert version is None or tensor._version == version, name


@pytest.mark.parametrize("wrapper", [fake, two], ids=["fake", "two tensors"])
@pytest.mark.parametrize(("op", "name", "position"), BESIDE_PLAIN, ids=str)
def test_subclasses_beside_plain_tensors_that_are_written(
    backend: str, op: str, name: str, position: int | None, wrapper: Callable[[Tensor], Tensor]
) -> None:
    arguments = CALLS[op].arguments()
    value = arguments[name] if position is None else arguments[name][position]
    changed = replaced(arguments, name, position, wrapper(value))
    label = name if position is None else rf"{name}\[{position}\]"
    unchanged_by_failure(
        op, changed, TypeError, rf"{op}: {label} is a (Fake|Two)Tensor, but \w+(\[\d\])?, which is written"
    )


@pytest.mark.parametrize(("op", "name", "position"), FLOATING, ids=str)
def test_gradients_that_arguments_require_are_no_fault_or_the_first_thing_said(
    backend: str, op: str, name: str, position: int | None
) -> None:
    arguments = CALLS[op].arguments()
    value = arguments[name] if position is None else arguments[name][position]
    value.requires_grad_()
    if name in CALLS[op].written:
        unchanged_by_failure(op, arguments, (RuntimeError, ValueError), rf"{op}: {name} requires? a?\s?grad")  # type: ignore[arg-type]
        return
    CALLS[op].function(**arguments)
    for written in CALLS[op].written:
        assert not any(t.requires_grad for n, _, t in tensors(arguments) if n == written)


def two_sided(*weights: Tensor) -> dict[str, Any]:
    """Arguments for layers of two outputs and two inputs without a bias."""
    blocks = [torch.eye(2).unsqueeze(0) for _ in weights]
    none = [None] * len(weights)
    return {"weights": list(weights), "biases": none, "inverses": blocks, "means": none, "roots": list(blocks)}


@needs_native
@pytest.mark.parametrize("place", ["weights", "inverses", "roots"])
def test_misaligned_layers_are_refused_before_strided_ones_are_written(place: str) -> None:
    strided = torch.ones(2, 4)[:, ::2]
    arguments = two_sided(strided, torch.ones(2, 2))
    arguments[place][1] = misaligned(*arguments[place][1].shape)
    unchanged_by_failure("two_sided_directions_", arguments, ValueError, rf"{place}\[1\] is not aligned to its dtype")


def test_layers_that_share_memory_are_refused_by_every_backend(backend: str) -> None:
    memory = torch.ones(3, 4)
    for weights in ((memory[:2, ::2], memory[1:, ::2]), (memory[0].view(2, 2), memory.flatten()[2:6].view(2, 2))):
        arguments = two_sided(*weights)
        unchanged_by_failure("two_sided_directions_", arguments, ValueError, r"weights\[1\] and weights\[0\] overlap")
    strided = torch.ones(2, 4)[:, ::2]
    arguments = two_sided(strided, torch.ones(2, 2))
    arguments["roots"][1] = strided.unsqueeze(0)
    unchanged_by_failure("two_sided_directions_", arguments, ValueError, r"roots\[1\] and weights\[0\] overlap")


def test_inference_tensors_are_refused_before_strided_layers_are_written(backend: str) -> None:
    with torch.inference_mode():
        inference = torch.ones(2, 4)[:, ::2]
    arguments = two_sided(torch.ones(2, 2), inference)
    unchanged_by_failure("two_sided_directions_", arguments, RuntimeError, r"weights\[1\] is an inference tensor")


def test_freed_parameters_are_refused_before_their_masters_are_written(backend: str) -> None:
    """All tensors of one group, which a kernel would take in one call."""
    freed = torch.zeros(4)
    freed.untyped_storage().resize_(0)
    refuses_second_parameter(freed, "has entries but a null pointer")


@pytest.mark.parametrize("backend", [WHERE_NATIVE], indirect=True)
def test_misaligned_parameters_are_refused_before_their_masters_are_written(backend: str) -> None:
    """PyTorch's own operations write to them."""
    refuses_second_parameter(misaligned(4), "is not aligned")


def refuses_second_parameter(param: Tensor, message: str) -> None:
    masters, ones = [torch.zeros(4), torch.zeros(4)], [torch.ones(4)] * 2
    with pytest.raises(ValueError, match=rf"params\[1\] {message}"):
        multi_tensor.apply_master_(masters, [torch.zeros(4), param], ones, torch.ones(2), 0.5, 0.0)
    assert not masters[0].any()


@pytest.mark.parametrize("op", ["ema_combined_", "apply_master_"])
def test_the_reference_takes_all_memory_before_it_writes(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second result or the rounded parameters could be what no memory is left for."""
    call = CALLS[f"multi_tensor.{op}"]
    arguments = call.arguments()
    before = [t.clone() for t in arguments[call.written[0]]]
    broken = {
        "ema_combined_": (torch, "_foreach_add_"),
        "apply_master_": (torch, "where"),
    }
    module, name = broken[op]
    usual, calls = getattr(module, name), []

    def no_memory(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == {"ema_combined_": 2, "apply_master_": 6}.get(op, 1):
            raise RuntimeError("out of memory")
        return usual(*args, **kwargs)

    lk.set_backend("reference")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, no_memory)
            with pytest.raises(RuntimeError, match="out of memory"):
                call.function(**arguments)
    finally:
        lk.set_backend("auto")
    assert all(map(torch.equal, arguments[call.written[0]], before))
