"""The refresh of a step: factors of the metrics of all layers whose second moments it gathered.

Diagonal blocks of one size are handled together, whatever layers they belong to: averages, inverses and roots are made in a
number of calls that depends on the number of sizes. A CPU takes runs of layers that its caches hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lnb.context import LayerContext
from lnb.sharded.columns import Columns, add_parts, partial_output_moment
from lnb.statistics.arenas import Arenas, Selection, Shape, chunked, constant, owners_of, sums_of
from lnb.statistics.device_refresh import refresh_on_device
from lnb.statistics.factored import Factor, block_count, factorize
from lnb.statistics.input_sizes import keeps_input_size, select_input_sizes
from lnb.statistics.orthogonalize import inverse_root
from lnb.statistics.running import bias_correction, mean_diagonals, sample_ridge_of
from lnb.statistics.shared_state import Sharing, layers_of, shared
from lnb.trust_regions.two_sided import output_moment, sized_output_moment
from lnb.verdict import Verdict
from lnb_kernels.refresh import AveragedGradient, averaged_tensors
from lnb_kernels.scaling import sum_dtype

# On the CPU, output moments of layers of one shape are taken in one call up to this many entries: above, stacking the layers
# costs more than the calls it saves.
_STACKED = 1 << 15


Averages = Mapping[nn.Parameter, Tensor | AveragedGradient]
"""``g~`` by parameter: tensors, or the parts from which the refresh forms them as it reads them."""
Means = Callable[[list[LayerContext], list[Tensor]], list[Tensor]]


def refresh(
    contexts: list[LayerContext], averages: Averages, verdict: Verdict, arenas: Arenas, means: Means | None = None
) -> None:
    """Make new factors for the layers whose second moments this step gathered.

    State of a layer's weight, in blocks ``[groups, blocks, size, size]`` each: ``second_moment`` and ``output_moment``, averages
    with a decay, ``b_s``; ``second_moment_step``, what they count; ``factor`` and ``output_factor``; and ``factor_mean``
    ``[groups, d_in]`` where the bias takes part. A layer whose step had no samples that count keeps what it has; at first,
    and when blocks have changed, that is zero, and the layer stands still.

    Args:
        contexts: layers that keep a factor, of one device.
        averages: ``g~`` of each of their parameters.
        verdict: whether anything may change.
        arenas: where the states live.
        means: where ranks share out the rows of layers, turns sums over the rows here, ``[groups]`` of each layer, into means
            over all rows; None for whole layers.

    On GPUs the whole layers whose blocks the kernels take are done in four launches (:mod:`lnb.statistics.device_refresh`).
    """
    kinds: dict[tuple[object, ...], list[Sharing]] = {}
    begun: list[_Refresh] = []
    sharings = shared(contexts, arenas)
    for sharing in sharings:
        context = sharing.first
        kind = sharing.moments.shape[-1], sharing.moments.dtype, context.with_bias, context.config, context.ridge
        kinds.setdefault(kind, []).append(sharing)
    sharings = [sharing for alike in kinds.values() for sharing in alike]
    reserve(sharings, arenas)
    served: set[Sharing] = set()
    if means is None:
        served.update(refresh_on_device(sharings, averages, verdict, arenas))
    averages = _formed(averages, layers_of(sharing for sharing in sharings if sharing not in served))
    for alike in ([sharing for sharing in members if sharing not in served] for members in kinds.values()):
        for chunk in chunked(alike, _moment_size, contexts[0].layer.weight.device):
            part = _Refresh(chunk, verdict, arenas)
            part.begin(averages, means is not None)
            if means is None:
                part.finish()
            else:
                begun.append(part)
    if means is not None:
        found = [(part, outputs) for part in begun for outputs in part.outputs]
        parts = [(outputs, columns) for _, outputs in found if (columns := outputs.columns) is not None]
        added = add_parts([(columns, outputs.moment) for outputs, columns in parts])
        for (outputs, _), total in zip(parts, added, strict=True):
            outputs.complete(total)
        members = [part.contexts[i] for part, outputs in found for i in outputs.members]
        traces = [trace for _, outputs in found for trace in outputs.traces()]
        over_all = iter(means(members, traces) if traces else ())
        for _, outputs in found:
            outputs.rescale([next(over_all) for _ in outputs.members])
        for part in begun:
            part.finish()


def _formed(averages: Averages, contexts: list[LayerContext]) -> Averages:
    """The averages, with tensors in place of those that are not formed yet, where the refresh of these layers reads them."""
    wanted = [p for context in contexts if context.config.region.two_sided for p in context.parameters]
    found = [(p, average) for p in wanted if isinstance(average := averages[p], AveragedGradient)]
    if not found:
        return averages
    return {**averages, **dict(zip((p for p, _ in found), averaged_tensors([x for _, x in found]), strict=True))}


def reserve(sharings: Sequence[Sharing], arenas: Arenas) -> None:
    """Make the arenas for all layers that gathered at once: otherwise every run would make them anew and copy them."""
    inputs: dict[tuple[str, int, torch.dtype], list[tuple[Sharing, Shape]]] = {}
    outputs: dict[tuple[str, int, torch.dtype], list[tuple[LayerContext, Shape]]] = {}
    for sharing in sharings:
        config, dtype = sharing.first.config, sharing.moments.dtype
        groups, _, d_in = sharing.first.layer.shape
        _, blocks, ones, _ = sharing.moments.shape
        former = sharing.state.get("second_moment")
        if former is not None and former.shape != sharing.moments.shape:  # cut into other blocks: starts anew
            for context in sharing.contexts:
                context.state["second_moment_step"] = torch.zeros_like(context.state["second_moment_step"])
        inputs.setdefault(("factor", ones - 1, dtype), []).append((sharing, (groups, blocks, ones - 1, ones - 1)))
        if sharing.first.with_bias:
            inputs.setdefault(("factor_mean", 0, dtype), []).append((sharing, (groups, d_in)))
        if config.b_s > 0:
            inputs.setdefault(("second_moment", ones, dtype), []).append((sharing, (groups, blocks, ones, ones)))
            inputs.setdefault(("second_moment_step", 0, torch.float32), []).append((sharing, ()))
        for context in sharing.contexts if config.region.two_sided else ():
            groups, rows, _ = context.layer.shape
            count = block_count(rows, config.block_size)
            size = rows // count
            for key in ("output_factor", "output_moment") if config.b_s > 0 else ("output_factor",):
                outputs.setdefault((key, size, dtype), []).append((context, (groups, count, size, size)))
    for (key, size, dtype), members in inputs.items():
        states, others = [sharing.state for sharing, _ in members], [sharing.others for sharing, _ in members]
        like = torch.empty((), dtype=dtype, device=members[0][0].moments.device)
        arenas.select(key, states, [shape for _, shape in members], like, tail=2 if size else 0, others=others)
    for (key, _, dtype), of_layers in outputs.items():
        like = torch.empty((), dtype=dtype, device=of_layers[0][0].layer.weight.device)
        states = [context.state for context, _ in of_layers]
        arenas.select(key, states, [shape for _, shape in of_layers], like, tail=2)


def _moment_size(sharing: Sharing) -> int:
    return sharing.moments.numel()


class _Refresh:
    """Layers with blocks of one size, of one setting."""

    def __init__(self, sharings: list[Sharing], verdict: Verdict, arenas: Arenas) -> None:
        self.sharings = sharings
        self.contexts = layers_of(sharings)
        self.sharing_of = [i for i, sharing in enumerate(sharings) for _ in sharing.contexts]
        self.config = self.contexts[0].config
        self.arenas = arenas
        moments = [sharing.moments for sharing in sharings]
        self.blocks = [(moment.shape[0], moment.shape[1]) for moment in moments]  # groups, blocks of each
        self.counts = tuple(groups * blocks for groups, blocks in self.blocks)
        self.device = moments[0].device
        flat = [moment.reshape(-1, *moment.shape[-2:]) for moment in moments]
        self.gathered = flat[0] if len(flat) == 1 else torch.cat(flat)  # [entries, size+1, size+1]
        self.samples = torch.stack([moment[0, 0, -1, -1] for moment in moments])  # [sharings]
        self.allowed = self._allowed(verdict)
        self.outputs: list[_Outputs] = []

    def _allowed(self, verdict: Verdict) -> Tensor | None:
        """Whose state may change, ``[sharings]``; None for all."""
        allowed = self.samples > 0
        squarable = [sharing.first.squarable for sharing in self.sharings]
        flags = {i: flag for i, flag in enumerate(squarable) if flag is not None}
        if len(flags) == len(squarable):
            allowed &= torch.stack(list(flags.values()))
        else:
            for i, flag in flags.items():
                allowed[i] = allowed[i] & flag
        ok = verdict.on(self.device)
        if ok is not None:
            return allowed & ok
        return None if self.device.type == "cpu" and bool(allowed.all()) else allowed

    def begin(self, averages: Averages, sized: bool) -> None:
        """Average and factor; return this step's output moments, ``sized`` with what they were divided by."""
        second_moment = self._averaged()
        context, config = self.contexts[0], self.config
        relative = config.ridge_mode == "relative"
        share: float | Tensor = context.ridge
        if relative and max(config.sample_ridge, config.data_ridge) > 0:
            inputs = tuple(sharing.first.data_inputs for sharing in self.sharings)
            of_data = constant(inputs, self.device, self.samples.dtype)
            added = sample_ridge_of(second_moment.shape[-1] - 1, self.samples, of_data, self._steps(), config)
            share = self._per_entry(share + added)
        groups = tuple(blocks for count, blocks in self.blocks for _ in range(count))
        firsts = [sharing.first for sharing in self.sharings]
        columns = [
            first.layer.columns for first, (count, _) in zip(firsts, self.blocks, strict=True) for _ in range(count)
        ]
        ridge = share
        if relative or keeps_input_size(config):
            diagonals = mean_diagonals(second_moment, context.with_bias, groups, columns)
            self._note_input_sizes(diagonals)
            ridge = (share * diagonals).view(-1, 1, 1, 1) if relative else share
        self.fresh = factorize(
            second_moment.unsqueeze(1), ridge, context.with_bias, inverse=not config.region.whitens
        )  # [entries, 1, size, size]
        if self.fresh.mean is not None:  # not a view, which would keep all moments until the end
            self.fresh = replace(self.fresh, mean=self.fresh.mean.clone())
        del self.gathered
        if config.region.two_sided:
            self.outputs = self._output_moments(self.fresh, averages, sized)

    def _note_input_sizes(self, diagonals: Tensor) -> None:
        """Keep the root of the mean diagonal of the metric, over its groups, of every layer that sees data."""
        of_data = [i for i, context in enumerate(self.contexts) if context.layer.sees_data]
        kept = select_input_sizes([self.contexts[i] for i in of_data], self.arenas)
        if kept is None:
            return
        counts = constant(tuple(map(float, self.counts)), diagonals.device, diagonals.dtype)
        sizes = (sums_of(diagonals, self.counts) / counts).sqrt()
        places = constant(tuple(self.sharing_of[i] for i in of_data), diagonals.device, torch.int64)
        allowed = None if self.allowed is None else self.allowed[places]
        kept.write(sizes[places].to(sum_dtype(diagonals.device)), allowed)

    def finish(self) -> None:
        """Take the roots, and keep them."""
        fresh = self.fresh
        if self.outputs:
            self._refresh_outputs()
        if fresh.mean is None:
            for context in self.contexts:
                context.state.pop("factor_mean", None)
        else:
            means = [(sharing.first.layer.shape[0], sharing.first.layer.d_in) for sharing in self.sharings]
            self._keep("factor_mean", fresh.mean.flatten(), means, tail=0)
        size = fresh.matrix.shape[-1]
        blocks = [(*count, size, size) for count in self.blocks]
        self._keep("factor", fresh.matrix.squeeze(1), blocks, tail=2)  # last: a layer that has it needs no refresh

    def _averaged(self) -> Tensor:
        """The averages of ``E[x~ x~']``, with this step's."""
        mean = self.gathered / self._per_entry(self.samples.clamp(min=1)).view(-1, 1, 1)
        decay = self.config.b_s
        if decay == 0:
            return mean
        shapes = [(*blocks, *mean.shape[1:]) for blocks in self.blocks]
        kept = self._select("second_moment", shapes, mean, tail=2)
        counted = self._select("second_moment_step", [()] * len(shapes), self.samples.float())
        counted.write(counted.read() + 1, self.allowed)
        allowed = None if self.allowed is None else self._per_entry(self.allowed).view(-1, 1, 1)
        kept.write(torch.lerp(kept.read(), mean, 1 - decay), allowed)
        corrections = bias_correction(decay, counted.read().clamp(min=1)).to(mean.dtype)
        return kept.read() / self._per_entry(corrections).view(-1, 1, 1)

    def _steps(self) -> Tensor | None:
        """How many steps the averages count, ``[sharings]``; None without averages."""
        if self.config.b_s == 0:
            return None
        return torch.stack([sharing.state["second_moment_step"] for sharing in self.sharings])

    def _refresh_outputs(self) -> None:
        """``P^(-1/2)`` of the averaged second moments of the neurons' gradients.

        The average is not corrected for its start at zero: its scale has no effect on a direction that is scaled row by row.
        """
        by_size: dict[int, list[_Outputs]] = {}
        for outputs in self.outputs:
            by_size.setdefault(outputs.moment.shape[-1], []).append(outputs)
        for size, found in by_size.items():
            states = [self.contexts[i].state for outputs in found for i in outputs.members]
            shapes = [(*outputs.blocks, size, size) for outputs in found for _ in outputs.members]
            counts = tuple(shape[0] * shape[1] for shape in shapes)
            members = [i for outputs in found for i in outputs.members]
            flat = [outputs.moment.reshape(-1, size, size) for outputs in found]
            moment = flat[0] if len(flat) == 1 else torch.cat(flat)
            if self.config.b_s > 0:
                kept = self.arenas.select("output_moment", states, shapes, moment, tail=2)
                moment = torch.lerp(kept.read(), moment, 1 - self.config.b_s)
                kept.write(moment, self._allowed_entries(members, counts, 2))
            root = inverse_root(moment, ridge=self.config.output_ridge)
            self.arenas.select("output_factor", states, shapes, root, tail=2).write(
                root, self._allowed_entries(members, counts, 2)
            )

    def _output_moments(self, factor: Factor, averages: Averages, sized: bool) -> list[_Outputs]:
        """This step's output moments, of layers of one shape together where that pays."""
        alike: dict[object, list[int]] = {}
        for i, context in enumerate(self.contexts):
            alone = context.layer.weight.is_cpu and context.layer.weight.numel() > _STACKED
            alone = alone or context.layer.columns is not None
            alike.setdefault(i if alone else (context.layer.shape, self.blocks[self.sharing_of[i]]), []).append(i)
        found = []
        begins = [sum(self.counts[:i]) for i in range(len(self.counts))]
        for members in alike.values():
            groups, rows, d_in = self.contexts[members[0]].layer.shape
            lead = (groups,) if len(members) == 1 else (len(members), groups)
            weights, biases = zip(*(matrices(self.contexts[i], averages) for i in members), strict=True)
            places = [self.sharing_of[i] for i in members]
            spans = [slice(begins[i], begins[i] + self.counts[i]) for i in places]
            matrix = _joined([factor.matrix[span] for span in spans], False)
            size = matrix.shape[-1]
            mean = None if factor.mean is None else _joined([factor.mean[span] for span in spans], False)
            of_members = Factor(
                matrix.reshape(*lead, d_in // size, size, size), None if mean is None else mean.reshape(*lead, d_in)
            )
            count = block_count(rows, self.config.block_size)
            given = [bias for bias in biases if bias is not None]
            bias = _joined(given, True) if given else None
            given_to = _joined(weights, True), bias, of_members, count
            columns = self.contexts[members[0]].layer.columns
            if columns is not None:
                partial = partial_output_moment(*given_to, columns)
                found.append(_Outputs(members, partial, None, (groups, count), columns, matrix.dtype))
            elif sized:
                found.append(_Outputs(members, *sized_output_moment(*given_to), (groups, count)))
            else:
                found.append(_Outputs(members, output_moment(*given_to), None, (groups, count)))
        return found

    def _per_entry(self, values: Tensor) -> Tensor:
        """A value per sharing as one per entry."""
        return values if len(self.counts) == sum(self.counts) else values[owners_of(self.counts, self.device)]

    def _allowed_entries(self, members: Sequence[int], counts: tuple[int, ...], tail: int) -> Tensor | None:
        """Whose outputs' entries may change, ``[entries, 1, ...]``; None for all."""
        if self.allowed is None:
            return None
        of_members = torch.stack([self.allowed[self.sharing_of[i]] for i in members])
        return of_members[owners_of(counts, self.device)].view(-1, *[1] * tail)

    def _keep(self, key: str, values: Tensor, shapes: Sequence[Shape], tail: int) -> None:
        allowed = self.allowed
        if allowed is not None:
            counts = tuple(math.prod(shape[: len(shape) - tail]) for shape in shapes)
            allowed = allowed[owners_of(counts, self.device)].view(-1, *[1] * tail)
        self._select(key, shapes, values, tail).write(values, allowed)

    def _select(self, key: str, shapes: Sequence[Shape], like: Tensor, tail: int = 0) -> Selection:
        """The state of the layers' inputs; layers that share one count once."""
        states, others = [s.state for s in self.sharings], [s.others for s in self.sharings]
        return self.arenas.select(key, states, shapes, like, tail=tail, others=others)


@dataclass
class _Outputs:
    """Output moments of some layers of one shape.

    Attributes:
        members: their places.
        moment: ``[.., groups, blocks, size, size]``, of mean diagonal 1.
        trace: of the moment before it was scaled, ``[.., groups]``; None where layers are whole.
        blocks: groups, and blocks of each.
        columns: of the layer, where its inputs are shared out: then ``moment`` is what these add, until it is complete.
        dtype: of its complete moment.
    """

    members: list[int]
    moment: Tensor
    trace: Tensor | None
    blocks: tuple[int, int]
    columns: Columns | None = None
    dtype: torch.dtype | None = None

    def complete(self, total: Tensor) -> None:
        """Take the sum over all columns."""
        moment = (total + total.mT) / 2
        diagonal = moment.diagonal(dim1=-2, dim2=-1)
        average = diagonal.mean(dim=(-2, -1))
        self.trace = diagonal.sum(dim=(-2, -1)).clamp(min=0)
        each = average[..., None, None, None]
        self.moment = torch.where(each > 0, moment / each, 0.0).to(self.dtype)

    def traces(self) -> Sequence[Tensor]:
        """The share of every member in the sum over ranks, ``[groups]``."""
        assert self.trace is not None
        if self.columns is not None:  # all its ranks have all of it
            return (self.trace / self.columns.of,)
        return (self.trace,) if len(self.members) == 1 else self.trace.unbind()

    def rescale(self, means: list[Tensor]) -> None:
        """Scale the moments so that the mean diagonal over all rows of a layer is 1; ``means``, ``[groups]`` of every member,
        is what it was before."""
        assert self.trace is not None
        here = self.trace / (self.moment.shape[-1] * self.blocks[1])
        share = torch.where(here > 0, here / _joined(means, True), 0.0)
        self.moment = self.moment * share.to(self.moment.dtype)[..., None, None, None]


def _joined(tensors: Sequence[Tensor], new_dimension: bool) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    return torch.stack(list(tensors)) if new_dimension else torch.cat(list(tensors))


def matrices(context: LayerContext, averages: Averages) -> tuple[Tensor, Tensor | None]:
    """``g~`` of the weight ``[groups, rows, d_in]`` and of the bias ``[groups, rows, 1]``."""
    groups, rows, d_in = context.layer.shape
    found = (averages[parameter] for parameter in context.parameters)
    weight, *bias = (value if isinstance(value, Tensor) else value.tensor() for value in found)
    return weight.view(groups, rows, d_in), bias[0].view(groups, rows, 1) if bias else None
