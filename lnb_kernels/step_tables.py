"""The stages of an ordinary step of LNB's default, prepared: on CPUs, from tables of addresses that are made once.

Between two refreshes a step reads and writes the same memory every time, gradients excepted. What the stages' ops look up and
check in every call - types, layouts, addresses of hundreds of tensors - takes longer than the step of a small model; here it is
done when the tables are made, and compared afterwards. The arithmetic is that of :mod:`lnb_kernels.multi_tensor` and
:func:`lnb_kernels.balanced_directions_`, whose kernels the native module calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lnb_kernels import _backend, _native
from lnb_kernels._checks import PLAIN
from lnb_kernels.balanced.native_kernel import LARGEST_BLOCK


@dataclass(frozen=True)
class StepSettings:
    """What all steps have in common.

    Attributes:
        momentum: decay of the gradients' averages.
        nesterov: whether they look ahead.
        b_rows: decay of the mean squares of rows' gradients.
        noise: agreement of gradients that have nothing in common.
        change: the largest relative change of weights per unit of the learning rate.
        largest: the largest of all.
        opposed: share of the squared norm to be expected below which a layer's average shrinks its radius.
        shrink, grow, least: of the radius.
        b_others: decay of the mean squares of other parameters' gradients.
        epsilon: of Adam's rule.
        most: what larger entries count as there.
        others_scale: of other parameters' steps.
    """

    momentum: float
    nesterov: bool
    b_rows: float
    noise: float
    change: float
    largest: float
    opposed: float
    shrink: float
    grow: float
    least: float
    b_others: float
    epsilon: float
    most: float
    others_scale: float


@dataclass(frozen=True)
class StepLayer:
    """A layer: the places of its weight ``[matrices, rows, inputs]`` and bias among the parameters, and its statistics.

    Attributes:
        weight, bias: places; None without a bias.
        inverse, mean, root: as for :func:`lnb_kernels.balanced_directions_`, with one leading dimension.
        row_square: ``[matrices, rows]``, float64.
        usual_norm: the least norm that its weight counts as having.
    """

    weight: int
    bias: int | None
    inverse: Tensor
    mean: Tensor | None
    root: Tensor
    row_square: Tensor
    usual_norm: float


class StepTables:
    """Tables of one set of parameters, and the tensors that they point to.

    Args:
        parameters: what moves, float32.
        momentum: their averages.
        layers: of some of the parameters.
        squares: the averages of squared gradients of the parameters that belong to no layer, in their order.
        numbers: ``steps``, ``[parameters]`` float32; and ``independent``, ``weight_norm``, ``growth``, ``radius``, ``[layers]``
            float64.
        settings: of every step.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        momentum: Sequence[Tensor],
        layers: Sequence[StepLayer],
        squares: Sequence[Tensor],
        numbers: Sequence[Tensor],
        settings: StepSettings,
    ) -> None:
        of_layers = [(x.inverse, x.mean, x.root, x.row_square) for x in layers]
        self._tensors = [*parameters, *momentum, *squares, *numbers]
        self._tensors += [tensor for of_layer in of_layers for tensor in of_layer if tensor is not None]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        shapes = []
        for layer in layers:
            matrices, rows = layer.row_square.shape
            blocks, size = layer.inverse.shape[-3], layer.inverse.shape[-1]
            bias = -1 if layer.bias is None else layer.bias
            shapes.append((layer.weight, bias, matrices, rows, blocks * size, size, layer.root.shape[-1]))
        self._count = len(parameters)
        self._native = _native.module().StepTables(
            [(p.data_ptr(), m.data_ptr()) for p, m in zip(parameters, momentum, strict=True)],
            [p.numel() for p in parameters],
            [tuple(0 if t is None else t.data_ptr() for t in of_layer) for of_layer in of_layers],
            shapes,
            [layer.usual_norm for layer in layers],
            list(map(Tensor.data_ptr, squares)),
            tuple(map(Tensor.data_ptr, numbers)),
            tuple(map(float, vars(settings).values())),
        )

    @staticmethod
    def serves(written: Sequence[Tensor], layers: Sequence[StepLayer]) -> bool:
        """Whether the kernels take such tensors here: on the CPU, dense float32 without subclasses, blocks of moderate size."""
        if _backend.get_backend() not in ("auto", "native") or _native.failure() is not None:
            return False
        read = [t for layer in layers for t in (layer.inverse, layer.mean, layer.root) if t is not None]
        blocks = [size for layer in layers for size in (layer.inverse.shape[-1], layer.root.shape[-1])]
        every = [*written, *read]
        return (
            max(blocks, default=1) <= LARGEST_BLOCK
            and _plain(every)
            and all(map(Tensor.is_contiguous, every))
            and min(map(Tensor.numel, every), default=1) > 0
        )

    def holds(self, gradients: Sequence[Tensor]) -> bool:
        """Whether all tensors lie where they lay, and the kernels take these gradients."""
        return (
            list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and _plain(gradients)
            and all(map(Tensor.is_contiguous, gradients))
            and _backend.get_backend() in ("auto", "native")
            and not torch.compiler.is_compiling()
        )

    def average(self, gradients: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Update the averages; the averaged gradients of this step go to ``outputs``."""
        reads = list(map(Tensor.data_ptr, gradients))
        self._native.average(reads, list(map(Tensor.data_ptr, outputs)), torch.get_num_threads())

    def observe(self) -> None:
        """Update what agreement is judged by, from the gradients of :meth:`average`."""
        self._native.observe(torch.get_num_threads())

    def direct(self) -> None:
        """Put directions in place of the averaged gradients."""
        self._native.direct(torch.get_num_threads())

    def sums(self) -> list[float]:
        """Of every layer in turn ``<h, g~>``, ``||h_W||^2``, the same before agreement, ``||g~||^2``."""
        sums: list[float] = self._native.sums()
        return sums

    def bound(self, rates: Sequence[float]) -> list[float]:
        """Decide how far they go, by each layer's learning rate; returns ``<h, g~>`` of layers, then of other parameters."""
        products: list[float] = self._native.bound(list(rates))
        return products

    def scales(self) -> list[float]:
        """What the direction of each parameter is multiplied by beside the learning rate."""
        scales: list[float] = self._native.scales()
        return scales

    def apply(self, places: Sequence[int], lr: float, weight_decay: float) -> None:
        """Move the parameters at ``places``."""
        self._native.apply(list(places), lr, weight_decay, torch.get_num_threads())
        torch.autograd.graph.increment_version([self._tensors[i] for i in places])


def _plain(tensors: Sequence[Tensor]) -> bool:
    return (
        set(map(type, tensors)) <= PLAIN
        and {tensor.dtype for tensor in tensors} <= {torch.float32}
        and all(tensor.is_cpu for tensor in tensors)
        and True not in map(Tensor.is_neg, tensors)
        and {tensor.layout for tensor in tensors} <= {torch.strided}
    )
