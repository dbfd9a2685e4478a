"""State of many layers in one tensor per kind, so that a stage of the step is a few calls, whatever the number of layers.

All numbers of one kind (a radius per layer, a mean square per row) and all diagonal blocks of one kind, size, dtype and device
(second moments, factors) live in one *arena*, ``[entries, *tail]``. What ``optimizer.state`` holds of a layer is a view of
its entries, in the layer's own shape. DASH (Modoranu et al., arXiv:2602.02016) stacks equal blocks for the same reason; here
they are never stacked anew.

Other code may replace a view in ``optimizer.state``: ``load_state_dict``, ``model.to(...)``, a trainer that moves states. An
arena compares identities before it is used, and takes over what it finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lnb_kernels._captured import device_constants

State = dict[str, Any]
Shape = tuple[int, ...]
T = TypeVar("T")

_CHUNK = {"cpu": 1 << 19}
_CHUNK_ELSEWHERE = 1 << 26
"""Entries that a device works on at once: on a CPU more would leave its caches between two calls, and on an accelerator borrow
more memory than a large layer does."""
_SEGMENTS = ("cpu", "cuda")
"""Devices on which PyTorch sums segments."""


@dataclass
class _Member:
    """One layer's share of an arena; ``address`` is where the view lay when it was made."""

    state: State
    view: Tensor
    begin: int
    end: int
    address: int


class _Arena:
    """One tensor, and the states that hold views of it."""

    def __init__(self, key: str, tensor: Tensor, members: list[_Member]) -> None:
        self.key = key
        self.tensor = tensor
        self.members = members
        self.by_state = {id(member.state): member for member in members}

    def holds(self, state: State, shape: Shape) -> bool:
        """Whether the entry of ``state`` is this arena's view, of that shape."""
        member = self.by_state.get(id(state))
        return member is not None and state.get(self.key) is member.view and _is_in_place(member, shape)

    def is_of(self, states: Sequence[State], shapes: Sequence[Shape]) -> bool:
        """Whether the arena's members are these states in this order, and all hold their views: the usual case."""
        if len(states) != len(self.members):
            return False
        for state, shape, member in zip(states, shapes, self.members, strict=True):
            if member.state is not state or state.get(self.key) is not member.view or not _is_in_place(member, shape):
                return False
        return True


def _is_in_place(member: _Member, shape: Shape) -> bool:
    """Whether nobody gave the view other memory, as ``view.data = ...`` does."""
    return member.view.shape == shape and member.view.data_ptr() == member.address


class Selection:
    """The entries of some members of an arena, ``[entries, *tail]``."""

    def __init__(self, tensor: Tensor, runs: tuple[tuple[int, int], ...]) -> None:
        self._tensor = tensor
        self._index = None
        if len(runs) == 1:
            begin, end = runs[0]
            self._tensor = tensor if end - begin == len(tensor) else tensor[begin:end]
        else:
            self._index = _entries(runs, tensor.device)

    def read(self) -> Tensor:
        """The entries; a copy where they do not lie side by side."""
        return self._tensor if self._index is None else self._tensor.index_select(0, self._index)

    def memory(self) -> Tensor | None:
        """The entries themselves; None where they do not lie side by side."""
        return self._tensor if self._index is None else None

    def write(self, values: Tensor, allowed: Tensor | None = None) -> None:
        """Replace the entries by ``values``; only where ``allowed``, bool, which broadcasts."""
        if allowed is not None:
            values = torch.where(allowed, values, self.read())
        if self._index is None:
            self._tensor.copy_(values)
        else:
            self._tensor.index_copy_(0, self._index, values.to(self._tensor.dtype))


class Arenas:
    """The arenas of one optimizer. A copy of the optimizer makes its own, from the states that it finds."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Arena] = {}

    def select(
        self,
        key: str,
        states: Sequence[State],
        shapes: Sequence[Shape],
        like: Tensor,
        tail: int = 0,
        start: Callable[[], Tensor] | float = 0.0,
    ) -> Selection:
        """The entries that ``states`` hold under ``key``, in their order. States that have none get views.

        Args:
            key: of the states.
            states: each once.
            shapes: what each state's view looks like, ``[*leading, *tail]``; the leading dimensions are its entries.
            like: of the dtype and device of the arena.
            tail: number of last dimensions that make up an entry.
            start: the entries of states that have none, or of another shape: a number; or makes them, ``[entries, *tail]``
                for all of ``states``.
        """
        size = tuple(shapes[0][len(shapes[0]) - tail :]) if tail else ()
        name = (key, size, like.dtype, like.device)
        arena = self._kept.get(name)
        if arena is not None and arena.is_of(states, shapes):
            return Selection(arena.tensor, ((0, len(arena.tensor)),))
        if arena is None or not all(map(arena.holds, states, shapes)):
            arena = self._kept[name] = _rebuilt(arena, key, states, shapes, like, size, start)
        return Selection(arena.tensor, _runs([arena.by_state[id(state)] for state in states]))


def _rebuilt(
    arena: _Arena | None,
    key: str,
    states: Sequence[State],
    shapes: Sequence[Shape],
    like: Tensor,
    size: Shape,
    start: Callable[[], Tensor] | float,
) -> _Arena:
    """An arena of ``states`` and of those of the former one that still hold its views."""
    wanted = dict(zip(map(id, states), shapes, strict=True))
    former = [m for m in (arena.members if arena is not None else ()) if m.state.get(key) is m.view]
    members = [(m.state, wanted.get(id(m.state), tuple(m.view.shape))) for m in former]
    known = {id(m.state) for m in former}
    members += [(state, shape) for state, shape in zip(states, shapes, strict=True) if id(state) not in known]
    counts = [math.prod(shape[: len(shape) - len(size)]) for _, shape in members]
    with torch.inference_mode(False):
        tensor = torch.empty((sum(counts), *size), dtype=like.dtype, device=like.device)
    first: dict[int, Tensor | float] = dict.fromkeys(wanted, start if isinstance(start, float) else 0.0)
    if not isinstance(start, float):
        own = [math.prod(shape[: len(shape) - len(size)]) for shape in shapes]
        first = dict(zip(wanted, start().split(own), strict=True))
    made = []
    begin = 0
    for (state, shape), count in zip(members, counts, strict=True):
        entries = tensor[begin : begin + count]
        found = state.get(key)
        if isinstance(found, Tensor) and tuple(found.shape) == shape:
            entries.copy_(found.reshape(entries.shape))
        else:
            value = first[id(state)]
            entries.fill_(value) if isinstance(value, float) else entries.copy_(value)
        view = entries.view(shape)
        made.append(_Member(state, view, begin, begin + count, view.data_ptr()))
        begin += count
    for member in made:  # last: nothing that fails leaves a part of them
        member.state[key] = member.view
    return _Arena(key, tensor, made)


def _runs(members: list[_Member]) -> tuple[tuple[int, int], ...]:
    """The ranges of entries, those side by side joined."""
    runs: list[tuple[int, int]] = []
    for member in members:
        if runs and runs[-1][1] == member.begin:
            runs[-1] = (runs[-1][0], member.end)
        else:
            runs.append((member.begin, member.end))
    return tuple(runs)


@device_constants(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` on ``device``, copied there once: a copy in every step would stall it, and cannot be captured in a graph."""
    return torch.tensor(values, device=device, dtype=dtype)


@device_constants(maxsize=64)
def _entries(runs: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    return torch.tensor([i for begin, end in runs for i in range(begin, end)], device=device)


@device_constants(maxsize=64)
def owners_of(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """The owner of each of ``sum(counts)`` entries: ``counts[0]`` times 0, ``counts[1]`` times 1, and so on."""
    return torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], device=device)


def sums_of(values: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The sums of the first ``counts[0]`` values, of the next ``counts[1]``, and so on; on CPUs and on CUDA the same bits in
    every run."""
    if len(counts) == len(values):
        return values
    if values.device.type not in _SEGMENTS:
        sums = values.new_zeros((len(counts), *values.shape[1:]))
        return sums.index_add_(0, owners_of(counts, values.device), values)
    return torch.segment_reduce(values, "sum", lengths=constant(counts, values.device), unsafe=True)


def chunked(items: Iterable[T], size: Callable[[T], int], device: torch.device) -> Iterator[list[T]]:
    """``items`` in runs that a device works on at once."""
    most = _CHUNK.get(device.type, _CHUNK_ELSEWHERE)
    chunk: list[T] = []
    total = 0
    for item in items:
        own = size(item)
        if chunk and total + own > most:
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += own
    if chunk:
        yield chunk


def compact(state: State) -> State:
    """``state`` with views of arenas replaced by copies: a view that is saved would take its whole arena along."""
    return {key: _compact(value) for key, value in state.items()}


def _compact(value: Any) -> Any:
    if not isinstance(value, Tensor) or type(value) is not Tensor:
        return value
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()
