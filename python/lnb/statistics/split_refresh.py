"""Refreshes shared out over ranks that have whole copies of the model: each makes some layers' factors, all get them.

All ranks would make the same factors of the same sums of second moments. With ``split_refresh=True`` a rank makes about its
share of them, and the ranks exchange what they have made, as distributed Shampoo (Shi et al., arXiv:2309.06497) does with its
directions. What a rank receives is to the bit what it would have made. It pays where factors take longer to make than to send
(:meth:`lnb.plan.Plan.refresh_seconds`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lnb.context import LayerContext
from lnb.statistics.arenas import Arenas
from lnb.statistics.refresh import Averages, refresh, reserve
from lnb.statistics.schedule import refresh_cost
from lnb.statistics.shared_state import layers_of, shared
from lnb.verdict import Verdict

_MADE = (
    "second_moment",
    "second_moment_step",
    "input_size",
    "factor",
    "factor_mean",
    "output_moment",
    "output_factor",
)


def refresh_over(
    group: Any,
    contexts: list[LayerContext],
    averages: Averages,
    verdict: Verdict,
    arenas: Arenas,
    first: Callable[[list[LayerContext]], list[LayerContext]] = list,
) -> None:
    """:func:`lnb.statistics.refresh.refresh` of whole layers, shared out over the ranks of ``group``; None to make all of
    them here.

    ``first`` is given the layers to refresh here, and returns those of them that it has not refreshed itself.
    """
    due = [] if group is None else shared(contexts, arenas)
    if len(due) < 2:
        left = first(contexts)
        if left:
            refresh(left, averages, verdict, arenas)
        return
    costs = [sum(refresh_cost(context.layer, context.config) for context in sharing.contexts) for sharing in due]
    shares = shared_out(costs, group.size())
    reserve(due, arenas)
    refresh(first(layers_of(due[i] for i in shares[group.rank()])), averages, verdict, arenas)
    made = [[tensor for context in layers_of(due[i] for i in share) for tensor in _made(context)] for share in shares]
    for dtype in sorted({tensor.dtype for tensors in made for tensor in tensors}, key=str):
        _exchange([[tensor for tensor in tensors if tensor.dtype == dtype] for tensors in made], dtype, group)


def shared_out(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """The layers that each rank takes: the costliest come first, and each goes to the rank that has least to do."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(i)
        loads[rank] += costs[i]
    return shares


def _made(context: LayerContext) -> list[Tensor]:
    """The tensors that a refresh makes for a layer."""
    state = context.state
    if not context.with_bias:
        state.pop("factor_mean", None)
    return [state[key] for key in _MADE if key in state]


def _exchange(made: list[list[Tensor]], dtype: torch.dtype, group: Any) -> None:
    """Give every rank the tensors that each of them has ``made``."""
    device = next(tensor.device for tensors in made for tensor in tensors)
    length = max(sum(map(Tensor.numel, tensors)) for tensors in made)
    everything = torch.empty(group.size(), length, dtype=dtype, device=device)
    own = torch.zeros(length, dtype=dtype, device=device)
    for target, tensor in _places(own, made[group.rank()]):
        target.copy_(tensor)
    dist.all_gather(list(everything.unbind()), own, group=group)
    for rank, tensors in enumerate(made):
        if rank != group.rank():
            for source, tensor in _places(everything[rank], tensors):
                tensor.copy_(source)


def _places(flat: Tensor, tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """A view of ``flat`` for each of ``tensors``, one after the other."""
    ends, found = 0, []
    for tensor in tensors:
        found.append((flat[ends : ends + tensor.numel()].view(tensor.shape), tensor))
        ends += tensor.numel()
    return found
