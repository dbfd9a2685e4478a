"""A sanitizer for Triton's interpreter: bounds of every load and store, elements never written, and races.

The interpreter computes real addresses of CPU memory. Each is compared with the memory of the launch's tensor arguments,
so an access out of bounds fails in every test that runs a kernel, masked lanes excepted. Within :func:`watch`, reads of
fresh memory must follow a write, and accesses are recorded: which elements a kernel wrote, and which were shared between
programs of one launch, whose order is not defined on a GPU. Atomic operations on one counter order them: what a program did
before its own is done for every program whose operation on that counter comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

Builder, Executor = interpreter.InterpreterBuilder, interpreter.GridExecutor


class OutOfBoundsError(AssertionError):
    """A kernel read or wrote outside of its tensors."""


class RaceError(AssertionError):
    """Programs of one launch share an element that one of them writes."""


class UnwrittenError(AssertionError):
    """A kernel read fresh memory that no kernel had written."""


class Fresh:
    """Memory as it comes from the allocator, and which of its elements kernels have written."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor  # kept, so that its addresses are not given to another
        self.start, self.size = tensor.data_ptr(), tensor.element_size()
        self.written = np.zeros(tensor.numel(), bool)

    def elements(self, addresses: np.ndarray) -> np.ndarray:
        """Indices of those ``addresses`` that are inside."""
        offsets = addresses[addresses >= self.start] - np.uint64(self.start)
        return (offsets[offsets < self.written.size * self.size] // np.uint64(self.size)).astype(np.int64)


READ, STORE, ATOMIC = range(3)
Program = tuple[int, ...]


class Access(NamedTuple):
    """What one instruction of a program did, and how many accesses of each program were done for certain before it."""

    program: Program
    number: int
    kind: int
    addresses: np.ndarray
    known: dict[Program, int]

    def conflicts(self, other: Access) -> bool:
        """Whether the two need an order, and have none."""
        if self.program == other.program or {self.kind, other.kind} in ({READ}, {ATOMIC}):
            return False
        return other.number >= self.known.get(other.program, 0) and self.number >= other.known.get(self.program, 0)


class Watch:
    """What the kernels of a :func:`watch` did."""

    def __init__(self) -> None:
        self.fresh: list[Fresh] = []
        self.kernels: list[str] = []
        self.written: list[np.ndarray] = []
        self._forget()

    def _forget(self) -> None:
        self._accesses: list[Access] = []
        self._counts: dict[Program, int] = {}
        self._known: dict[Program, dict[Program, int]] = {}
        self._released: dict[int, dict[Program, int]] = {}  # by the address of a counter

    def access(self, program: Program, addresses: np.ndarray, kind: int) -> None:
        for fresh in self.fresh:
            elements = fresh.elements(addresses)
            if kind == STORE:
                fresh.written[elements] = True
            elif not fresh.written[elements].all():
                raise UnwrittenError(f"{(~fresh.written[elements]).sum()} elements are read before they are written")
        number = self._counts.get(program, 0)
        self._counts[program] = number + 1
        self._accesses.append(Access(program, number, kind, addresses, self._known.get(program, {})))
        if kind == ATOMIC:  # release what this program knows, acquire what others released here before
            known = {**self._known.get(program, {}), program: number + 1}
            for address in map(int, addresses):
                released = self._released.setdefault(address, {})
                known = {other: max(known.get(other, 0), released.get(other, 0)) for other in {**known, **released}}
                self._released[address] = known
            self._known[program] = known

    def finish_launch(self, kernel: str) -> None:
        """Check the accesses of one launch for races."""
        self.kernels.append(kernel)
        accesses = self._accesses
        self._forget()
        addresses = np.concatenate([access.addresses for access in accesses] or [np.empty(0, np.uint64)])
        owners = np.repeat(np.arange(len(accesses)), [access.addresses.size for access in accesses])
        order = np.argsort(addresses, kind="stable")
        addresses, owners = addresses[order], owners[order]
        starts = np.flatnonzero(np.r_[True, addresses[1:] != addresses[:-1]]) if addresses.size else np.empty(0, int)
        written, read = 0, {}
        fine: dict[tuple[int, ...], tuple[int, Program | None]] = {}  # elements mostly share their accesses with others
        for start, stop in zip(starts, [*starts[1:], addresses.size], strict=True):
            if stop - start == 1:
                continue
            sharing = tuple(dict.fromkeys(owners[start:stop].tolist()))
            if sharing not in fine:
                fine[sharing] = self._race([accesses[owner] for owner in sharing])
            both, reader = fine[sharing]
            written += both
            if reader is not None:
                read[reader] = read.get(reader, 0) + 1
        if written:
            raise RaceError(f"{kernel}: {written} elements are written by several programs")
        for program, count in read.items():
            raise RaceError(f"{kernel}: {program} reads {count} elements that other programs write")
        stores = [access.addresses for access in accesses if access.kind == STORE]
        self.written.append(np.unique(np.concatenate(stores or [np.empty(0, np.uint64)])))

    @staticmethod
    def _race(accesses: list[Access]) -> tuple[int, Program | None]:
        """Of the accesses to one element: 1 if two programs write it without order, and who reads it without order."""
        for index, access in enumerate(accesses):
            for other in accesses[:index]:
                if access.conflicts(other):
                    readers = [each.program for each in (access, other) if each.kind == READ]
                    return (0, readers[0]) if readers else (1, None)
        return 0, None

    def unwritten(self) -> list[tuple[int, ...]]:
        """Shapes of fresh memory that kernels left in part as it came."""
        return [tuple(fresh.tensor.shape) for fresh in self.fresh if not fresh.written.all()]

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether every element of ``tensor`` was written."""
        offsets = sum(
            (
                (torch.arange(size) * stride).view(-1, *[1] * (tensor.dim() - 1 - dim))
                for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
            ),
            torch.zeros((), dtype=torch.int64),
        )
        addresses = tensor.data_ptr() + tensor.element_size() * offsets.numpy().astype(np.uint64)
        return bool(np.isin(addresses, np.concatenate(self.written)).all())


_starts = _stops = np.empty(0, np.uint64)
_watch: Watch | None = None


@contextmanager
def watch() -> Iterator[Watch]:
    """Record the accesses of the kernels launched inside, and the memory that ``new_empty`` and ``empty_like`` give them."""
    global _watch
    _watch = watch = Watch()

    def recorded(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            watch.fresh.append(Fresh(tensor))
            return tensor

        return call

    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    torch.Tensor.new_empty, torch.empty_like = recorded(new_empty), recorded(empty_like)
    try:
        yield watch
    finally:
        torch.Tensor.new_empty, torch.empty_like = new_empty, empty_like
        _watch = None


_through_tables: list[tuple[int, int]] = []


@contextmanager
def through_tables(*modules: Any) -> Iterator[None]:
    """Kernels inside may also touch tensors whose addresses the launchers in ``modules`` checked, and put into tables."""
    usual = [module.require_aligned for module in modules]

    def noted(check: Callable[..., None]) -> Callable[..., None]:
        def call(name: str, address: int, size: int, width: int) -> None:
            check(name, address, size, width)
            _through_tables.append((address, address + size * width))

        return call

    for module, check in zip(modules, usual, strict=True):
        module.require_aligned = noted(check)
    try:
        yield
    finally:
        _through_tables.clear()
        for module, check in zip(modules, usual, strict=True):
            module.require_aligned = check


def _memory_of(tensors: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """First and last byte addresses (exclusive) of the tensors' elements, overlapping ones merged, in order."""
    extents = [*_through_tables]
    for tensor in tensors:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        extents.append(
            (tensor.data_ptr(), tensor.data_ptr() + tensor.element_size() * (last + 1) * (tensor.numel() > 0))
        )
    spans: list[list[int]] = []
    for start, stop in sorted(extents):
        if start == stop:
            continue
        if spans and start < spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], stop)
        else:
            spans.append([start, stop])
    starts, stops = zip(*spans, strict=True)
    return np.array(starts, np.uint64), np.array(stops, np.uint64)


def _check(self: Any, pointers: Any, mask: Any, kind: int) -> None:
    addresses = np.atleast_1d(pointers.data)[np.atleast_1d(mask.data).astype(bool)].astype(np.uint64)
    if addresses.size == 0:
        return
    size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
    index = np.searchsorted(_starts, addresses, "right") - 1
    bad = (index < 0) | (addresses + size > _stops[np.maximum(index, 0)])
    if bad.any():
        raise OutOfBoundsError(
            f"{bad.sum()} of {bad.size} elements of a {('load', 'store', 'atomic')[kind]} are outside"
        )
    if _watch is not None:
        _watch.access(tuple(self.grid_idx), addresses, kind)


def install() -> None:
    """Check every launch of this process from now on; a second call changes nothing."""
    if hasattr(Builder, "_checks_bounds"):
        return
    load, store, atomic, convert, launch = (
        Builder.create_masked_load, Builder.create_masked_store, Builder.create_atomic_rmw, Executor._init_args_hst,
        Executor.__call__,
    )  # fmt: skip

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        _check(self, pointers, mask, READ)
        return load(self, pointers, mask, *rest, **options)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(self, pointers, mask, STORE)
        return store(self, pointers, value, mask, *rest)

    def create_atomic_rmw(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(self, pointers, mask, ATOMIC)
        return atomic(self, operation, pointers, value, mask, *rest)

    def init_args(self: Any, args: Any, kwargs: Any) -> Any:
        global _starts, _stops
        converted = convert(self, args, kwargs)
        values = [*converted[0], *converted[1].values()]
        values = [value.base if isinstance(value, TensorDescriptor) else value for value in values]
        _starts, _stops = _memory_of([value for value in values if isinstance(value, torch.Tensor)])
        return converted

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = launch(self, *args, **kwargs)
        if _watch is not None:
            _watch.finish_launch(self.fn.__name__)
        return result

    Builder.create_masked_load, Builder.create_masked_store = create_masked_load, create_masked_store
    Builder.create_atomic_rmw = create_atomic_rmw
    Executor._init_args_hst, Executor.__call__ = init_args, call
    Builder._checks_bounds = True
