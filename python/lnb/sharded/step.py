"""The stages of a step on shards: those of :mod:`lnb.step`, with every sum over a layer taken over all ranks.

A step has two exchanges, and a third where output moments are refreshed: second moments and whether all gradients are finite,
before anything is written (:mod:`lnb.distributed.exchange`); the traces of the output moments that are averaged; and the sums
that step lengths are made of, a few numbers per layer. Each needs what the one before has made (``docs/shards.md``). Their
order and sizes depend on the model alone, so that a rank that cannot make a step can still take part.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import LayerContext, StepContext
from lnb.layers.claimed import Layer
from lnb.scratch import Scratch
from lnb.sharded.local import LocalLayer, Locals
from lnb.sharded.mesh import Ranks
from lnb.solvers.solve import Solution, SolverInputs, solve
from lnb.statistics.arenas import Arenas, constant
from lnb.statistics.input_sizes import select_input_sizes
from lnb.statistics.refresh import refresh
from lnb.step import Share
from lnb.trust_regions.lengths import Lengths, in_region, measure_lengths
from lnb.verdict import Verdict
from lnb.weight_bound import is_measured
from lnb_kernels.scaling import sum_dtype

_SUMS = 7  # of a layer: <h, g~>, three squared lengths, ||g||^2, ||W||^2, input_size^2


class Exchange:
    """The sums over ranks of one optimizer, in places that do not depend on which layers a step moves.

    Args:
        ranks: those that take part.
        locals_: the local layers and parameters.
        layers: the layers.
        parameters: all parameters.
    """

    def __init__(self, ranks: Ranks, locals_: Locals, layers: list[Layer], parameters: list[nn.Parameter]) -> None:
        self._ranks = ranks
        self.on = True  # off: nothing is summed over ranks, as while state is made before the first step
        self._layers = len(layers)
        begins = [0]
        for layer in layers:
            begins.append(begins[-1] + layer.groups)
        self._group_begins = begins
        index = {parameter: i for i, parameter in enumerate(parameters)}
        self._place = {part: index[owner] for part, (owner, _) in locals_.owners.items()}
        self._count = len(parameters)
        self._is_first = {part: number == 0 for part, (_, number) in locals_.owners.items()}
        self._counts = {part: ranks.holds_first(owner) for part, (owner, _) in locals_.owners.items()}

    def is_first(self, local: nn.Parameter) -> bool:
        """Whether ``local`` is the first cut of its parameter."""
        return self._is_first[local]

    def leave(self, device: torch.device, refreshed: bool) -> None:
        """Take part in the later exchanges of a step that this rank does not make; output moments count where some are
        refreshed."""
        if refreshed:
            self._ranks.add(torch.zeros(self._group_begins[-1], dtype=sum_dtype(device), device=device))
        self._ranks.add(torch.zeros(_SUMS * self._layers + self._count, dtype=sum_dtype(device), device=device))

    def add_sums(
        self, contexts: list[LayerContext], columns: Tensor, others: list[nn.Parameter], products: Tensor
    ) -> Tensor:
        """Add sums of local layers, ``columns`` ``[local layers, 7]``, and of others, ``[others]``, over ranks.

        Every local layer gets the sums of its whole layer: ``[7 local layers + others]``.
        """
        device = columns.device
        layers = [cast(LocalLayer, context.layer) for context in contexts]
        buffer = columns.new_zeros(_SUMS * self._layers + self._count)
        of_layers = buffer[: _SUMS * self._layers].view(self._layers, _SUMS)
        places = constant(tuple(layer.place for layer in layers), device, torch.int64)
        begin = _SUMS * self._layers
        other_places = constant(tuple(begin + self._place[local] for local in others), device, torch.int64)
        if layers:
            counts = tuple(not layer.cut.is_empty and self._counts[layer.weight] for layer in layers)
            chosen = constant(counts, device, torch.bool).unsqueeze(1)
            of_layers.index_add_(0, places, torch.where(chosen, columns, 0.0))
        if others:
            chosen = constant(tuple(self._counts[local] for local in others), device, torch.bool)
            buffer.index_add_(0, other_places, torch.where(chosen, products, 0.0))
        if self.on:
            self._ranks.add(buffer)
        both = [of_layers[places].reshape(-1)] if layers else []
        return torch.cat([*both, buffer[other_places]])

    def add_products(self, contexts: list[LayerContext], values: Tensor) -> Tensor:
        """Sums over all rows of the layers of ``contexts``, from those over the rows here, ``[layers, n]``."""
        layers = [cast(LocalLayer, context.layer) for context in contexts]
        buffer = values.new_zeros(self._layers, values.shape[1])
        places = constant(tuple(layer.place for layer in layers), values.device, torch.int64)
        counts = tuple(not layer.cut.is_empty and self._counts[layer.weight] for layer in layers)
        chosen = constant(counts, values.device, torch.bool).unsqueeze(1)
        buffer.index_add_(0, places, torch.where(chosen, values, 0.0))
        if self.on:
            self._ranks.add(buffer)
        return buffer[places]

    def add_means(self, contexts: list[LayerContext], traces: list[Tensor]) -> list[Tensor]:
        """Means over all rows of each group, from sums over the rows here, ``[groups]`` of each local layer."""
        buffer = traces[0].new_zeros(self._group_begins[-1])
        layers = [cast(LocalLayer, context.layer) for context in contexts]
        begins = [self._group_begins[layer.place] + layer.cut.groups[0] for layer in layers]
        for layer, begin, trace in zip(layers, begins, traces, strict=True):
            if not layer.cut.is_empty and self._counts[layer.weight]:
                buffer[begin : begin + len(trace)] += trace
        if self.on:
            self._ranks.add(buffer)
        rows = [layer.whole.shape[1] for layer in layers]
        return [buffer[b : b + len(trace)] / n for b, n, trace in zip(begins, rows, traces, strict=True)]


def _part_of_layer(layer: LocalLayer) -> float:
    """The share of the layer's weight that these rows and columns are."""
    groups, rows, _ = layer.shape
    part = groups * rows / layer.d_out
    return part if layer.columns is None else part / layer.columns.of


class ShardedShare(Share):
    """The stages of one device's shards."""

    def __init__(
        self,
        exchange: Exchange,
        context: StepContext,
        verdict: Verdict,
        config: Config,
        arenas: Arenas,
        scratch: Scratch,
    ) -> None:
        super().__init__(context, verdict, config, arenas, scratch)
        self._exchange = exchange

    def direct(self) -> None:
        """Where to go, and all sums over ranks."""
        super().direct()
        context, contexts = self.context, self.context.layers
        layers = len(contexts)
        wide = self.products.dtype
        zeros = torch.zeros(layers, dtype=wide, device=self.products.device)
        free = damped = averages = fresh = norms = sizes = zeros
        if self.shortens:
            lengths = measure_lengths(context, self.solution, self.averages, self.agreement)
            free, damped = lengths.free.to(wide), lengths.damped.to(wide)
            averages = zeros if lengths.averages is None else lengths.averages.to(wide)
            due = [i for i, layer in enumerate(contexts) if is_measured(layer)]
            if due and self.config.max_relative_change is not None:
                found = torch._foreach_norm([contexts[i].layer.weight for i in due], dtype=wide)
                norms = zeros.index_copy(
                    0, constant(tuple(due), zeros.device, torch.int64), torch.stack(found).square()
                )
        refreshed = [i for i, each in enumerate(contexts) if each.moments is not None and each.layer.sees_data]
        input_sizes = select_input_sizes([contexts[i] for i in refreshed], self.arenas)
        if input_sizes is not None:
            places = constant(tuple(refreshed), zeros.device, torch.int64)
            parts = tuple(_part_of_layer(cast(LocalLayer, contexts[i].layer)) for i in refreshed)
            here = input_sizes.read().square() * constant(parts, zeros.device, wide)
            sizes = zeros.index_copy(0, places, here.to(wide))
        if self.agreement is not None:
            shares = tuple(1.0 if (c := context.layer.columns) is None else 1 / c.of for context in contexts)
            fresh = self.agreement.fresh.to(wide) * constant(shares, self.products.device, wide)
        columns = torch.stack([self.products[:layers], free, damped, averages, fresh, norms, sizes], dim=1)
        sums = self._exchange.add_sums(contexts, columns, context.others, self.products[layers:])
        of_layers = sums[: _SUMS * layers].view(layers, _SUMS).unbind(1)
        self.products = torch.cat([of_layers[0], sums[_SUMS * layers :]])
        if input_sizes is not None:  # over all groups, of which some may be on other ranks
            input_sizes.write(of_layers[6][places].sqrt(), self.verdict.on(zeros.device))
        if self.agreement is not None:
            self.agreement = dataclasses.replace(self.agreement, fresh=of_layers[4])
        if self.shortens:
            self.lengths = Lengths(of_layers[1], of_layers[2], None if self.agreement is None else of_layers[3])
            self.weight_norms = of_layers[5].sqrt()

    def solve(self, averages: dict[nn.Parameter, Tensor]) -> Solution:
        """Where the layers are to go."""
        add = self._exchange.add_products
        return solve(SolverInputs(self.context.layers, averages, self.verdict, self.agreement, add))

    def refresh(self, averages: dict[nn.Parameter, Tensor]) -> None:
        """The factors of the layers that are due."""
        contexts = [each for each in self.context.layers if each.config.factored]
        refresh(contexts, averages, self.verdict, self.arenas, self._exchange.add_means)

    def gain(self) -> Tensor:
        """The sum for the global region, with every layer counted once."""
        firsts = [cast(LocalLayer, context.layer).is_first for context in self.context.layers]
        once = (*firsts, *(self._exchange.is_first(local) for local in self.context.others))
        found = in_region(self.products, self.context, self.config)
        return torch.where(constant(once[: len(found)], found.device, torch.bool), found, 0.0).sum()

    def bound(self, total: Tensor | None) -> None:
        """Trust region."""
        super().bound(self.gain() if total is None else total)
