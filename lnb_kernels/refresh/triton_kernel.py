"""The refresh by Triton: tables of addresses in, four launches for all layers of gradients of one dtype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.crossover import power_of_two
from lnb_kernels._triton.launch import Launches, compiles_or_unavailable, on_device, register_limit
from lnb_kernels._triton.tables import MOST_ITEMS, bits_of, table_of
from lnb_kernels._writes import require_aligned
from lnb_kernels.fused_step.triton_direct import MOST_SCRATCH, TYPES
from lnb_kernels.refresh import triton_inputs as inputs
from lnb_kernels.refresh import triton_outputs as outputs
from lnb_kernels.refresh.layers import AveragedGradient, InputMetric, OutputMetric, averages_of, shape_of

_PIECE, _TILE, _BLOCK, _BLOCK_K = 1024, 32, 64, 16
_PER_MULTIPROCESSOR = {"metric": 8, "moment": 2, "root": 2}
T = TypeVar("T")


class _Kind(NamedTuple):
    """What output moments of one launch have in common."""

    gradient: torch.dtype
    bias: torch.dtype
    share: torch.dtype | None
    take: float
    aligned: bool


class _Output(NamedTuple):
    """A layer's neurons: which of the layers, their side, groups, rows, inputs, side of their blocks and of those of inputs."""

    number: int
    layer: InputMetric
    outputs: OutputMetric
    shape: tuple[int, int, int, int, int]

    @property
    def row_blocks(self) -> int:
        groups, rows, _, side, _ = self.shape
        return groups * (rows // side)

    @property
    def parts(self) -> int:
        """Programs of one of them."""
        _, _, columns, _, size = self.shape
        chunk: int = outputs.CHUNK.value
        return -(-(columns // size) // chunk)


@compiles_or_unavailable("refresh_metrics")
def refresh_metrics(
    layers: Sequence[InputMetric], ok: Tensor | None, noise: float, coefficients: Sequence[float], steps: int
) -> None:
    """As :func:`lnb_kernels.refresh.refresh_metrics`."""
    device = layers[0].gathered.device
    entries = [layer.inverse.shape[0] * layer.inverse.shape[1] for layer in layers]
    sums = torch.empty((sum(entries), 2), dtype=torch.float64, device=device)
    facts = torch.empty((len(layers), inputs.FACTS.value), dtype=torch.float64, device=device)
    held: list[Tensor] = []  # alive until the launches are queued
    made = Launches()
    arch = arch_of(device)
    with on_device(sums):
        _add_inputs(made, layers, entries, sums, facts, ok, noise, arch, held)
        members = [_Output(i, x, own, shape_of(x, own)) for i, x in enumerate(layers) for own in x.outputs]
        if members:
            _add_outputs(made, members, facts, coefficients, steps, arch, held)
        made.make(device)


def _add_inputs(
    made: Launches,
    layers: Sequence[InputMetric],
    entries: Sequence[int],
    sums: Tensor,
    facts: Tensor,
    ok: Tensor | None,
    noise: float,
    arch: Arch,
    held: list[Tensor],
) -> None:
    averages = averages_of(layers)
    rows, first = [], 0
    for i, (layer, average, count) in enumerate(zip(layers, averages, entries, strict=True)):
        rows.append(_input_fields(i, layer, average, first, held))
        first += count
    held += averages
    tables = [
        table_of(few, counts, facts.device) for few, counts in zip(_runs(rows), _runs(list(entries)), strict=True)
    ]
    for table in tables:
        flag = table.numbers if ok is None else ok.view(torch.uint8)
        made.add(
            inputs.average_kernel, table.programs, table.numbers, sums, facts, flag,
            ITEMS=table.items, HAS_OK=ok is not None, PIECE=_PIECE, num_warps=4,
        )  # fmt: skip
    side = max(layer.inverse.shape[-1] for layer in layers)
    pivots = inputs.PIVOTS.value
    padded = -(-side // pivots) * pivots
    for table in tables:
        each = _whole(padded * (padded + 2 * pivots))
        programs = _programs(table.programs, each, "metric", arch)
        made.add(
            inputs.metric_kernel, programs, table.numbers, sums, facts, made.scratch(programs, each), table.programs, each,
            noise,
            ITEMS=table.items, WIDE=power_of_two(side), TILE=min(_TILE, power_of_two(side)), num_warps=4, num_stages=1,
            **register_limit(224, arch),
        )  # fmt: skip


def _add_outputs(
    made: Launches,
    members: Sequence[_Output],
    facts: Tensor,
    coefficients: Sequence[float],
    steps: int,
    arch: Arch,
    held: list[Tensor],
) -> None:
    device = facts.device
    counts = [x.row_blocks * x.parts for x in members]
    parts = torch.empty((sum(counts), 2), dtype=torch.float64, device=device)
    partials = torch.empty(
        sum(count * x.shape[3] ** 2 for count, x in zip(counts, members, strict=True)),
        dtype=torch.float32,
        device=device,
    )
    fields, part, entry = [], 0, 0
    for count, member in zip(counts, members, strict=True):
        fields.append(_output_fields(member, part, entry, held))
        part += count
        entry += count * member.shape[3] ** 2
    kinds: dict[_Kind, list[int]] = {}
    for i, member in enumerate(members):
        kinds.setdefault(_kind_of(member, fields[i]), []).append(i)
    for kind, places in kinds.items():
        for few in _runs(places):
            table = table_of([fields[i] for i in few], [counts[i] for i in few], device)
            side, size = (max(members[i].shape[k] for i in few) for k in (3, 4))
            # Wide numbers, and those that are loaded one by one, wait in registers: a smaller tile.
            large = kind.aligned and kind.gradient != torch.float32
            block = min(_BLOCK if large else _BLOCK // 2, power_of_two(max(side, size)))
            each = _whole(2 * side * size)
            programs = _programs(table.programs, each, "moment", arch)
            made.add(
                outputs.moment_kernel, programs, table.numbers, facts, parts, partials, made.scratch(programs, each),
                table.programs, each, float(kind.take),
                G=TYPES[kind.gradient], B=TYPES[kind.bias], S=outputs.SHARES[kind.share], ITEMS=table.items,
                AVERAGED=kind.share is not None, ALIGNED=kind.aligned, WIDE=power_of_two(size), BLOCK=block,
                BLOCK_K=min(_BLOCK_K, block), num_warps=8, num_stages=1,
            )  # fmt: skip
    a, b, c = map(float, coefficients)
    for few in _runs(range(len(members))):
        table = table_of([fields[i] for i in few], [members[i].row_blocks for i in few], device)
        side = max(members[i].shape[3] for i in few)
        block = min(_BLOCK // 2, power_of_two(side))
        each = _whole(4 * side * side)
        programs = _programs(table.programs, each, "root", arch)
        made.add(
            outputs.root_kernel, programs, table.numbers, facts, parts, partials, made.scratch(programs, each),
            table.programs, each,
            4 * steps - 2, a, b, c,
            ITEMS=table.items, WIDE=256, BLOCK=block, BLOCK_K=block, num_warps=8, num_stages=1,
        )  # fmt: skip
    held += [parts, partials]


def _whole(size: int) -> int:
    """``size`` numbers, rounded up so that what follows them begins at 64 bytes."""
    return -(-size // 16) * 16


def _programs(items: int, size: int, kernel: str, arch: Arch) -> int:
    """How many there are, each with ``size`` numbers of memory."""
    return min(items, _PER_MULTIPROCESSOR[kernel] * arch.multiprocessors, max(1, MOST_SCRATCH // size))


def _runs(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return [items[first : first + MOST_ITEMS] for first in range(0, len(items), MOST_ITEMS)]


def _input_fields(i: int, layer: InputMetric, average: Tensor, first: int, held: list[Tensor]) -> tuple[int, ...]:
    gathered = layer.gathered
    groups, blocks, ones, _ = gathered.shape
    if gathered.stride()[1:] != (ones * ones, ones, 1):
        gathered = gathered.contiguous()
    held.append(gathered)
    flag = None if layer.squarable is None else layer.squarable.view(torch.uint8)
    named = (gathered, flag, average, layer.steps, layer.inverse, layer.mean)
    # One program goes over the groups, which may be hundreds: only where their size is wanted.
    sized = groups if any(own.input_size is not None for own in layer.outputs) else 1
    return (
        *(_address(name, tensor) for name, tensor in zip(("gathered", *_INPUTS), named, strict=True)),
        gathered.stride(0) if groups > 1 else 0, ones - 1, sized, blocks, int(layer.relative), i, first, bits_of(layer.decay),
        bits_of(layer.ridge), bits_of(layer.sample_ridge), bits_of(layer.data_inputs), bits_of(float(layer.sample_every)),
    )  # fmt: skip


_INPUTS = ("squarable", "average", "steps", "inverse", "mean")


def _output_fields(member: _Output, part: int, entry: int, held: list[Tensor]) -> tuple[int, ...]:
    layer, own = member.layer, member.outputs
    _, rows, columns, side, size = member.shape
    weight = _addresses("weight", own.weight, held)
    bias = (0, 0, 0) if own.bias is None else _addresses("bias", own.bias, held)
    momentum = own.weight.momentum if isinstance(own.weight, AveragedGradient) else 0.0
    kept = (layer.inverse, layer.mean, own.average, own.root, own.input_size)
    return (
        *weight, *bias, *(_address("state", tensor) for tensor in kept), member.number, part, entry, member.parts, rows,
        columns, side, size, bits_of(momentum), bits_of(layer.decay), bits_of(layer.output_ridge),
    )  # fmt: skip


def _kind_of(member: _Output, fields: tuple[int, ...]) -> _Kind:
    """``fields`` are those of the table, which begin with addresses."""
    own = member.outputs
    weight, bias = own.weight, own.weight if own.bias is None else own.bias
    read = (fields[k] for k in (outputs.WEIGHT.value, outputs.WEIGHT_AVERAGE.value, outputs.INVERSE.value))
    aligned = all(size % 8 == 0 for size in member.shape[2:]) and all(address % 16 == 0 for address in read)
    if isinstance(weight, Tensor):
        return _Kind(weight.dtype, bias.dtype if isinstance(bias, Tensor) else bias.gradient.dtype, None, 0.0, aligned)
    assert isinstance(bias, AveragedGradient)
    return _Kind(weight.gradient.dtype, bias.gradient.dtype, weight.share.dtype, weight.take, aligned)


def _addresses(name: str, gradient: Tensor | AveragedGradient, held: list[Tensor]) -> tuple[int, int, int]:
    """Of a gradient, its average and its share."""
    if isinstance(gradient, Tensor):
        value = gradient.resolve_neg().contiguous()
        held.append(value)
        return _address(name, value), 0, 0
    value, average = gradient.gradient.resolve_neg().contiguous(), gradient.average.contiguous()
    held += [value, average]
    return _address(name, value), _address(name, average), _address(name, gradient.share)


def _address(name: str, tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    require_aligned(name, address, tensor.numel(), tensor.element_size())
    return address
