"""State of many layers in one tensor per kind, so that a stage of the step is a few calls, whatever the number of layers.

All numbers of one kind (a radius per layer, a mean square per row) and all diagonal blocks of one kind, size, dtype and device
(second moments, factors) live in one *arena*, ``[entries, *tail]``. What ``optimizer.state`` holds of a layer is a view of
its entries, in the layer's own shape. DASH (Modoranu et al., arXiv:2602.02016) stacks equal blocks for the same reason; here
they are never stacked anew.

Layers that keep the very same numbers (:mod:`lnb.sharing`) hold views of the same entries.

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
"""Entries that a device handles at once: on a CPU more would leave its caches between two calls, and on an accelerator borrow
more memory than a large layer does."""
_SEGMENTS = ("cpu", "cuda")
"""Devices on which PyTorch sums segments."""


@dataclass
class _Member:
    """The part of an arena that one layer has, or several share; ``address`` is where the views lay when they were made."""

    states: tuple[State, ...]
    views: tuple[Tensor, ...]
    begin: int
    end: int
    address: int

    def is_held(self, key: str, states: tuple[State, ...], shape: Shape) -> bool:
        """Whether ``states`` and no others hold the views, of that shape, where they lay."""
        if len(states) != len(self.states):
            return False
        for state, own, view in zip(states, self.states, self.views, strict=True):
            # ``view.data = ...`` gives it other memory
            if state is not own or state.get(key) is not view or view.shape != shape or view.data_ptr() != self.address:
                return False
        return True


class _Arena:
    """One tensor, and the states that hold views of it."""

    def __init__(self, key: str, tensor: Tensor, members: list[_Member]) -> None:
        self.key = key
        self.tensor = tensor
        self.members = members
        self.by_state = {id(state): member for member in members for state in member.states}

    def holds(self, states: tuple[State, ...], shape: Shape) -> bool:
        """Whether the entries of ``states`` are this arena's views of one place, of that shape."""
        member = self.by_state.get(id(states[0]))
        return member is not None and member.is_held(self.key, states, shape)

    def is_of(self, holders: Sequence[tuple[State, ...]], shapes: Sequence[Shape]) -> bool:
        """Whether the arena's members are these in this order, and all hold their views: the usual case."""
        if len(holders) != len(self.members):
            return False
        for states, shape, member in zip(holders, shapes, self.members, strict=True):
            if not member.is_held(self.key, states, shape):
                return False
        return True


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
        """Replace the entries by ``values`` where ``allowed``, a bool tensor that broadcasts, is true."""
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
        self._apart: set[tuple[int, int]] = set()

    def note_apart(self, one: State, other: State) -> None:
        """Remember that two states differ in what they could share."""
        self._apart.add((id(one), id(other)))

    def are_apart(self, one: State, other: State) -> bool:
        """Whether that was noted."""
        return (id(one), id(other)) in self._apart

    def select(
        self,
        key: str,
        states: Sequence[State],
        shapes: Sequence[Shape],
        like: Tensor,
        tail: int = 0,
        start: Callable[[], Tensor] | float = 0.0,
        others: Sequence[Sequence[State]] | None = None,
    ) -> Selection:
        """The entries that ``states`` hold under ``key``, in their order. States that have none get views.

        Args:
            key: of the states.
            states: each once.
            shapes: what each state's view looks like, ``[*leading, *tail]``; the leading dimensions are its entries.
            like: a tensor of the arena's dtype and device.
            tail: number of last dimensions that make up an entry.
            start: the entries of states that have none, or of another shape: a number; or makes them, ``[entries, *tail]``
                for all of ``states``.
            others: for each of ``states``, those that are to hold the same entries: they get views of what the first has. None
                for no others. Whoever else held the same entries gets a copy for itself.
        """
        size = tuple(shapes[0][len(shapes[0]) - tail :]) if tail else ()
        name = (key, size, like.dtype, like.device)
        arena = self._kept.get(name)
        holders = [(s,) for s in states] if others is None else [(s, *o) for s, o in zip(states, others, strict=True)]
        if arena is not None and arena.is_of(holders, shapes):
            return Selection(arena.tensor, ((0, len(arena.tensor)),))
        if arena is None or not all(map(arena.holds, holders, shapes)):
            arena = self._kept[name] = _rebuilt(arena, key, holders, shapes, like, size, start)
        return Selection(arena.tensor, _runs([arena.by_state[id(state)] for state in states]))


def _rebuilt(
    arena: _Arena | None,
    key: str,
    holders: Sequence[tuple[State, ...]],
    shapes: Sequence[Shape],
    like: Tensor,
    size: Shape,
    start: Callable[[], Tensor] | float,
) -> _Arena:
    """An arena of ``holders`` and of the states of the former one that still hold its views."""
    members = _members(arena, key, holders, shapes)
    counts = [math.prod(shape[: len(shape) - len(size)]) for _, shape in members]
    with torch.inference_mode(False):
        tensor = torch.empty((sum(counts), *size), dtype=like.dtype, device=like.device)
    wanted = [id(states[0]) for states in holders]
    first: dict[int, Tensor | float] = dict.fromkeys(wanted, start if isinstance(start, float) else 0.0)
    if not isinstance(start, float):
        own = [math.prod(shape[: len(shape) - len(size)]) for shape in shapes]
        first = dict(zip(wanted, start().split(own), strict=True))
    made = []
    begin = 0
    for (states, shape), count in zip(members, counts, strict=True):
        entries = tensor[begin : begin + count]
        found = states[0].get(key)
        if isinstance(found, Tensor) and tuple(found.shape) == shape:
            entries.copy_(found.reshape(entries.shape))
        else:
            value = first[id(states[0])]
            entries.fill_(value) if isinstance(value, float) else entries.copy_(value)
        views = tuple(entries.view(shape) for _ in states)
        made.append(_Member(states, views, begin, begin + count, views[0].data_ptr()))
        begin += count
    for member in made:  # last: nothing that fails leaves a part of them
        for state, view in zip(member.states, member.views, strict=True):
            state[key] = view
    return _Arena(key, tensor, made)


def _members(
    arena: _Arena | None, key: str, holders: Sequence[tuple[State, ...]], shapes: Sequence[Shape]
) -> list[tuple[tuple[State, ...], Shape]]:
    """The states that are to have entries, with their shapes: the former members in their order, then the new ones."""
    place = {id(state): i for i, states in enumerate(holders) for state in states}
    members: list[tuple[tuple[State, ...], Shape]] = []
    placed: set[int] = set()
    for former in arena.members if arena is not None else ():
        held = [state for state, view in zip(former.states, former.views, strict=True) if state.get(key) is view]
        for state in held:
            i = place.get(id(state))
            if i is not None and i not in placed:
                placed.add(i)
                members.append((holders[i], shapes[i]))
        left = tuple(state for state in held if id(state) not in place)
        if left:
            members.append((left, tuple(former.views[0].shape)))
    members += [(holders[i], shapes[i]) for i in range(len(holders)) if i not in placed]
    return members


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
    """``items`` in runs that a device handles at once."""
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
