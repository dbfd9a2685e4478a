"""Multi-tensor ops on memory that is not as it should be: refused with a name, before anything is written, or served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import average_
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from lnb_kernels import _backend, multi_tensor
from lnb_kernels._writes import require_writable

# Each op that writes, as a function of what it writes and what it reads.
WRITERS: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Any]] = {
    "ema_combined_": lambda xs, ys: multi_tensor.ema_combined_(xs, ys, 0.5, torch.ones(len(xs)), 0.5),
    "apply_": lambda xs, ys: multi_tensor.apply_(xs, ys, torch.ones(len(xs)), 0.5, 0.5),
    "apply_master_": lambda xs, ys: multi_tensor.apply_master_(
        xs, [torch.zeros(x.shape, dtype=torch.bfloat16) for x in xs], ys, torch.ones(len(xs)), 0.5, 0.5
    ),
}
on_every_writer = pytest.mark.parametrize("op", WRITERS)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (lambda m: ([m[:10], m[5:15]], [ones(10)] * 2), r"\[1\] and \w+\[0\] overlap"),
        (lambda m: ([m[:20:2], m[10:30:2]], [ones(10)] * 2), r"\[1\] and \w+\[0\] overlap"),
        (lambda m: ([m[:20:2], m[10:20]], [ones(10)] * 2), r"\[1\] and \w+\[0\] overlap"),
        (lambda m: ([m[:10], m[50:60]], [ones(10), m[59:69]]), r"\[1\] and \w+\[1\] overlap"),
        (lambda m: ([m[:10], m[50:60:2]], [m[50:60], ones(5)]), r"\[0\] and \w+\[1\] overlap"),
        (lambda m: ([m[:10], m[50:60]], [ones(10).double(), m[0:10].double().float()]), None),
        (lambda m: ([m[:20:2], m[1:21:2]], [ones(10)] * 2), None),
        (lambda m: ([m[:20:2]], [m[1:21:2].fill_(1)]), None),
        (lambda m: ([m.view(10, 10)[:, :5], m.view(10, 10)[:, 5:]], [ones(10, 5)] * 2), None),
        (lambda m: ([m[:0], m[:10]], [m[:0], ones(10)]), None),
    ],
)
@on_every_writer
def test_written_memory_that_is_shared_is_refused_by_every_backend(backend: str, op: str, views, message) -> None:
    memory = torch.zeros(100)
    xs, ys = views(memory)
    if message is None:
        expected = [x.clone() for x in xs]
        WRITERS[op](expected, [y.clone() for y in ys])
        WRITERS[op](xs, ys)
        assert all(torch.equal(*pair) for pair in zip(xs, expected, strict=True))
        return
    with pytest.raises(ValueError, match=message):
        WRITERS[op](xs, ys)
    assert not memory.any()


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(1, 4), st.integers(1, 3), st.booleans()),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_overlap_is_found_exactly(views: list[tuple[int, int, int, int, bool]]) -> None:
    """Against sets of bytes, for strided views of one buffer as two dtypes."""
    memory = torch.zeros(256, dtype=torch.int16)
    tensors: dict[bool, list[Tensor]] = {True: [], False: []}
    taken: dict[bool, list[set[int]]] = {True: [], False: []}
    for i, (start, rows, columns, stride, written) in enumerate(views):
        dtype = (torch.bfloat16, torch.float32)[i % 2]
        view = memory.view(dtype).as_strided((rows, columns), (stride * columns, stride), start)
        tensors[written].append(view)
        width = view.element_size()
        firsts = [start + row * stride * columns + column * stride for row in range(rows) for column in range(columns)]
        taken[written].append({first * width + byte for first in firsts for byte in range(width)})
    writes = taken[True]
    shared = any(a & b for i, a in enumerate(writes) for b in (*writes[:i], *taken[False]))
    if not shared:
        require_writable({"written": tensors[True], "read": tensors[False]}, {"written"})
        return
    with pytest.raises(ValueError, match="overlap in memory"):
        require_writable({"written": tensors[True], "read": tensors[False]}, {"written"})


@on_every_writer
def test_what_the_reference_takes_goes_first_since_it_may_fail(
    backend: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors with gaps go by PyTorch's operations, which need memory; the kernels need none."""

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    dense, gaps = torch.zeros(10), torch.zeros(20)[::2]
    monkeypatch.setattr(torch, "_foreach_copy_", no_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        WRITERS[op]([dense, gaps], [ones(10), ones(10)])
    assert not dense.any()
    assert not gaps.any()


@on_every_writer
def test_inference_tensors_are_written_or_refused_as_one(backend: str, op: str) -> None:
    with torch.inference_mode():
        inference = torch.zeros(20)[::2]
        WRITERS[op]([torch.zeros(10), inference.clone()], [ones(10)] * 2)
    dense = torch.zeros(10)
    with pytest.raises(RuntimeError, match=r"\w+\[1\] is an inference tensor.*use .clone\(\)"):
        WRITERS[op]([dense, inference], [ones(10)] * 2)
    assert not dense.any()


def test_an_inference_average_is_refused_by_name_where_nothing_is_to_be_written(both_backends: None) -> None:
    with torch.inference_mode():
        inference = torch.ones(10)
    with pytest.raises(RuntimeError, match=r"^averages\[0\] is an inference tensor"):
        multi_tensor.ema_combined_([inference], [ones(10)], 0.5, torch.ones(1), 0.0, torch.tensor(False))


@on_every_writer
def test_freed_memory_is_refused_before_any_write(backend: str, op: str) -> None:
    """As sharded training frees the storage of parameters. The other tensor is of another dtype, and of another launch."""
    written, freed = torch.zeros(10, dtype=torch.float64), torch.zeros(10)
    freed.untyped_storage().resize_(0)
    if op == "apply_master_":
        written = torch.zeros(10)
    with pytest.raises(
        ValueError, match=r"\w+\[1\] has entries but a null pointer; pass a tensor whose memory is allocated"
    ):
        WRITERS[op]([written, freed], [torch.ones(10, dtype=written.dtype), ones(10)])
    assert not written.any()
    for function in (lambda: multi_tensor.dot([freed], [freed]), lambda: multi_tensor.all_finite([freed])):
        with pytest.raises(ValueError, match="null pointer"):
            function()


@on_every_writer
def test_nothing_is_recorded_for_autograd(backend: str, op: str) -> None:
    xs, ys = [torch.zeros(10), torch.zeros(20)[::2]], [ones(10).requires_grad_(), ones(10).requires_grad_()]
    result = WRITERS[op](xs, ys)
    results = [] if result is None else list(result)
    assert not any(tensor.requires_grad for tensor in (*xs, *results))
    assert not multi_tensor.dot(xs, ys).requires_grad
    rate = torch.tensor(0.5, requires_grad=True)
    multi_tensor.apply_(xs, ys, torch.ones(2, requires_grad=True), rate, rate)
    assert not any(x.requires_grad for x in xs)


@on_every_writer
def test_subclasses_meet_the_call_at_the_dispatcher(backend: str, op: str) -> None:
    """They may have no memory of their own: PyTorch's example of two tensors in one, and fake tensors outside their mode."""
    parts = torch.zeros(10), torch.full((10,), 2.0)
    average_([TwoTensor(*parts)], [TwoTensor(ones(10), ones(10))], 0.5)
    assert torch.equal(parts[0], torch.full((10,), 0.5))
    assert torch.equal(parts[1], torch.full((10,), 1.5))
    assert torch.equal(multi_tensor.dot([TwoTensor(*parts)], [TwoTensor(*parts)]).b, torch.tensor([22.5]))
    with FakeTensorMode():
        xs, ys = [torch.zeros(10)], [torch.ones(10)]
    assert multi_tensor.dot(xs, ys).shape == (1,)
    with xs[0].fake_mode:
        WRITERS[op](xs, ys)


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_rates_without_a_value_are_refused(backend: str, name: str) -> None:
    x = torch.zeros(3)
    rates: dict[str, Any] = {"lr": 0.5, "weight_decay": 0.5}
    for value, message in ((torch.ones((), device="meta"), "is on meta"), (10**400, "must be finite")):
        with pytest.raises(ValueError, match=f"apply_: {name}.*{message}"):
            multi_tensor.apply_([x], [ones(3)], ones(1), **rates | {name: value})
    assert not x.any()


def test_meta_tensors_pass_through() -> None:
    xs, ys = [torch.zeros(3, device="meta"), torch.zeros(3, device="meta")], [torch.ones(3, device="meta")] * 2
    multi_tensor.ema_combined_(xs, ys, 0.5, torch.ones(2, device="meta"), 0.0)
    assert multi_tensor.dot(xs, ys).is_meta


def test_every_op_that_writes_is_here() -> None:
    writing = {name.removeprefix("multi_tensor_") for name in _backend.routes() if name.startswith("multi_tensor_")}
    assert writing - {"dot", "all_finite", "moment_flags", "squared_row_norms"} == set(WRITERS)
