"""The stages of an ordinary step of LNB's default, prepared: on CPUs, from tables of addresses that are made once.

Between two refreshes a step reads and writes the same memory every time, gradients excepted. What the stages' ops look up and
check in every call - types, layouts, addresses of hundreds of tensors - takes longer than the step of a small model; here it is
done when the tables are made, and compared afterwards. The arithmetic is that of :mod:`lnb_kernels.multi_tensor` and
:func:`lnb_kernels.two_sided_directions_`, whose kernels the native module calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _backend, _native
from lnb_kernels._checks import PLAIN
from lnb_kernels.multi_tensor.grouping import native_type
from lnb_kernels.two_sided.native_kernel import LARGEST_BLOCK

MOST_COHERENCE, PLAIN_COHERENCE = 4.0, 2.0
"""The most that one step counts in coherence, and the coherence from which on the radius grows by all of ``grow``."""
RECOVERING = (0.35, 0.4, 0.5, 0.6)
"""Coherence below the band of noise where radii begin to grow, where they grow by all of ``recover``, the last where they do, and
where they do no more."""
HELD = 1e-4
"""A norm whose square changes by less than this, over what the steps' squares are, is not the steps': somebody holds it."""
DATA_BIAS = 2.0**-100
"""What the square of a bias's gradient counts beside those of the weights, where agreement is judged, in layers that see data."""
_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


@dataclass(frozen=True)
class RadiusRule:
    """How the radius of a layer, the share of its region that it uses, changes: :func:`lnb.damping.radii`.

    Attributes:
        opposed: share of the squared norm to be expected below which a layer's average shrinks its radius.
        shrink, grow: the factors by which the radius shrinks then, and grows.
        least: the least radius that there is.
        b_coherence: decay of the average of the squared norm over that to be expected.
        quiet, loud: coherence between which gradients are noise.
        calm: the factor by which the radius shrinks then.
        floor: the value down to which it shrinks, then and where gradients oppose each other.
        recover: the factor by which it grows below, at most: see :data:`RECOVERING`.
        opening: the first steps, in which the radius grows where gradients do not oppose.
        turning: the radius goes to ``floor`` where the square of the weights' norm has changed, since it was measured last, by
            less than this times what steps at right angles would change it by,
        telling: and these by more than this.
        interval: of the steps that measure the norm. Up to one step more than that they are closer together, some next to each
            other, and not judged by these two.
    """

    opposed: float
    shrink: float
    grow: float
    least: float
    b_coherence: float
    quiet: float
    loud: float
    calm: float
    floor: float
    recover: float
    opening: float
    turning: float
    telling: float
    interval: float


@dataclass(frozen=True)
class StepSettings:
    """The settings that all steps have in common.

    Attributes:
        momentum: decay of the gradients' averages.
        nesterov: whether they look ahead.
        b_rows: decay of the mean squares of rows' gradients.
        change: the largest relative change of weights per unit of the learning rate.
        largest: the largest of all.
        radius: how radii change.
        b_others: decay of the mean squares of other parameters' gradients.
        epsilon: of Adam's rule.
        others_scale: of other parameters' steps.
        most: the value that larger entries of float32 count as there.
    """

    momentum: float
    nesterov: bool
    b_rows: float
    change: float
    largest: float
    radius: RadiusRule
    b_others: float
    epsilon: float
    others_scale: float
    most: float

    def numbers(self) -> list[float]:
        """All of them in order, those of the radius among them, as ops and the native module take them."""
        return [
            float(value)
            for setting in vars(self).values()
            for value in (vars(setting).values() if isinstance(setting, RadiusRule) else (setting,))
        ]

    @staticmethod
    def of_numbers(numbers: Sequence[float]) -> StepSettings:
        """The settings whose :meth:`numbers` these are."""
        left = iter(numbers)
        values: dict[str, Any] = {}
        for name in StepSettings.__dataclass_fields__:
            if name == "radius":
                values[name] = RadiusRule(**{own: next(left) for own in RadiusRule.__dataclass_fields__})
            else:
                values[name] = next(left)
        return StepSettings(**{**values, "nesterov": bool(values["nesterov"])})


@dataclass(frozen=True)
class StepLayer:
    """A layer: the places of its weight ``[matrices, rows, inputs]`` and bias among the parameters, and its statistics.

    Attributes:
        weight, bias: places; None without a bias.
        inputs: of each row.
        row_square: ``[matrices, rows]``, float64.
        usual_norm: the least norm that its weight counts as having.
    """

    weight: int
    bias: int | None
    inputs: int
    row_square: Tensor
    usual_norm: float


@dataclass(frozen=True)
class StepFactor:
    """What a refresh makes of a layer: ``inverse``, ``mean`` and ``root`` of :func:`lnb_kernels.two_sided_directions_`."""

    inverse: Tensor
    mean: Tensor | None
    root: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the factor that are not None."""
        return [tensor for tensor in (self.inverse, self.mean, self.root) if tensor is not None]


@dataclass(frozen=True)
class StepMoment:
    """A layer that is refreshed: the states that are made of its second moment.

    Attributes:
        layer: its place among the layers.
        second_moment: the average of ``E[[x 1]'[x 1]]``, from zero, ``[matrices, blocks, size+1, size+1]``.
        counted: how many steps that counts, ``[]``.
        inverse: ``C^-1``, ``[matrices, blocks, size, size]``.
        mean: of the inputs, ``[matrices, inputs]``; None without a bias.
        output_moment: the average of ``P``, from zero, ``[matrices, outputs, side, side]``.
        root: ``P^(-1/2)``, of the same shape.
        decay: of both averages.
        ridge: relative to the mean variance of the inputs.
        sample_ridge: what that grows by, times inputs of a block per sample that the average counts.
        data_inputs: what it grows by, divided by the samples of this step.
        sample_every: one of how many samples was read.
        output_ridge: added to the diagonal of each block of ``P``, relative to its mean.
        follows: whether it shares all that is kept of its inputs, up to ``mean``, with another layer of the same call.
        sized: whether its ``input_size`` is written, the root of the mean diagonal of the metric.
    """

    layer: int
    second_moment: Tensor
    counted: Tensor
    inverse: Tensor
    mean: Tensor | None
    output_moment: Tensor
    root: Tensor
    decay: float
    ridge: float
    sample_ridge: float
    data_inputs: float
    sample_every: int
    output_ridge: float
    follows: bool = False
    sized: bool = True

    @property
    def tensors(self) -> list[Tensor]:
        """In the order of the kernel; without the mean, where there is none."""
        own = [self.second_moment, self.counted, self.inverse, self.mean, self.output_moment, self.root]
        return [tensor for tensor in own if tensor is not None]


class StepTables:
    """Tables of one set of parameters, and the tensors that they point to.

    Averages, directions and factors of parameters in float64 are in float64, those of all others in float32.

    Args:
        parameters: the parameters to move.
        momentum: their averages.
        masters: float32 masters of those that move through one, which are of 16 bits; None for others.
        layers: of some of the parameters.
        squares: the averages of squared gradients of the parameters that belong to no layer, in their order.
        numbers: ``steps``, ``[parameters]`` float32; and ``independent``, ``weight_norm``, ``growth``, ``radius``,
            ``coherence``, ``input_size``, ``[layers]`` float64.
        settings: of every step.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        momentum: Sequence[Tensor],
        masters: Sequence[Tensor | None],
        layers: Sequence[StepLayer],
        squares: Sequence[Tensor],
        numbers: Sequence[Tensor],
        settings: StepSettings,
    ) -> None:
        kept = [master for master in masters if master is not None]
        self._tensors = [*parameters, *momentum, *kept, *squares, *numbers, *(layer.row_square for layer in layers)]
        self._dtypes = [parameter.dtype for parameter in parameters]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        shapes = [(x.weight, -1 if x.bias is None else x.bias, *x.row_square.shape, x.inputs) for x in layers]
        native = _native.module()
        self._native = native.StepTables(
            [
                (p.data_ptr(), m.data_ptr(), 0 if master is None else master.data_ptr())
                for p, m, master in zip(parameters, momentum, masters, strict=True)
            ],
            [native_type(native, dtype) for dtype in self._dtypes],
            [p.numel() for p in parameters],
            [layer.row_square.data_ptr() for layer in layers],
            shapes,
            [layer.usual_norm for layer in layers],
            list(map(Tensor.data_ptr, squares)),
            tuple(map(Tensor.data_ptr, numbers)),
            tuple(settings.numbers()[:-1]),  # float32's largest entry is known there
        )

    @staticmethod
    def serves(tensors: Sequence[Tensor]) -> bool:
        """Whether the kernels take such parameters, averages and gradients: on the CPU, dense, no subclasses."""
        return (
            _backend.get_backend() in ("auto", "native")
            and _native.failure() is None
            and _plain(tensors)
            and all(map(Tensor.is_contiguous, tensors))
            and min(map(Tensor.numel, tensors), default=1) > 0
        )

    @staticmethod
    def solves(factors: Sequence[StepFactor], dtypes: Sequence[torch.dtype]) -> bool:
        """Whether the kernels take such factors of layers whose averages are of ``dtypes``: blocks of moderate size."""
        read = [tensor for factor in factors for tensor in factor.tensors]
        for factor, dtype in zip(factors, dtypes, strict=True):
            if any(tensor.dtype != dtype for tensor in factor.tensors):
                return False
        sides = [size for factor in factors for size in (factor.inverse.shape[-1], factor.root.shape[-1])]
        return max(sides, default=1) <= LARGEST_BLOCK and _plain(read) and all(map(Tensor.is_contiguous, read))

    def holds(self, gradients: Sequence[Tensor]) -> bool:
        """Whether all tensors lie where they lay, and the kernels take these gradients."""
        return (
            list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and [gradient.dtype for gradient in gradients] == self._dtypes
            and _plain(gradients)
            and all(map(Tensor.is_contiguous, gradients))
            and _backend.get_backend() in ("auto", "native")
            and not torch.compiler.is_compiling()
        )

    def average(self, gradients: Sequence[Tensor], outputs: Sequence[int]) -> None:
        """Update the averages; the averaged gradients of this step go to the addresses ``outputs``.

        There is memory of each parameter's size, in the precision of its average, that stays until the step is complete.
        """
        self._native.average(list(map(Tensor.data_ptr, gradients)), list(outputs), torch.get_num_threads())

    def observe(self) -> None:
        """Update what agreement is judged by, from the gradients of :meth:`average`."""
        self._native.observe(torch.get_num_threads())

    def refreshes(self, moment: StepMoment, gathered: Tensor) -> bool:
        """Whether the kernels take such a layer that gathered that: float32, blocks of moderate size."""
        read = [gathered, *moment.tensors]
        sides = moment.inverse.shape[-1], moment.root.shape[-1]
        narrow = all(tensor.dtype == torch.float32 for tensor in read)
        return narrow and max(sides) <= LARGEST_BLOCK and _plain(read) and all(map(Tensor.is_contiguous, read))

    def refresh(
        self, moments: Sequence[StepMoment], gathered: Sequence[Tensor], coefficients: Sequence[float], steps: int
    ) -> None:
        """Make the factors of some layers anew, from the averaged gradients.

        Args:
            moments: of layers that the kernels take; of layers that share one memory, all but one follow.
            gathered: of each of them this step's sums of ``[x 1]'[x 1]``, of the shape and dtype of its ``second_moment``,
                contiguous.
            coefficients: of the Newton-Schulz steps that take roots (:func:`lnb_kernels.newton_schulz_root`).
            steps: their number.
        """
        addresses = [
            [own.data_ptr(), *map(Tensor.data_ptr, moment.tensors)]
            for moment, own in zip(moments, gathered, strict=True)
        ]
        for moment, of_layer in zip(moments, addresses, strict=True):
            if moment.mean is None:
                of_layer.insert(4, 0)
        self._native.refresh(
            [(x.layer, x.inverse.shape[-1], x.root.shape[-1], int(x.follows), int(x.sized)) for x in moments],
            addresses,
            [(x.decay, x.ridge, x.sample_ridge, x.data_inputs, float(x.sample_every), x.output_ridge) for x in moments],
            tuple(coefficients),
            steps,
            torch.get_num_threads(),
        )

    def direct(self, factors: Sequence[StepFactor]) -> None:
        """Put directions in place of the averaged gradients."""
        addresses = [
            (x.inverse.data_ptr(), 0 if x.mean is None else x.mean.data_ptr(), x.root.data_ptr()) for x in factors
        ]
        sides = [(x.inverse.shape[-1], x.root.shape[-1]) for x in factors]
        self._native.direct(addresses, sides, torch.get_num_threads())

    def sums(self) -> list[float]:
        """``<h, g~>``, ``||h_W||^2``, the same before agreement, and ``||g~||^2``, for one layer after the other."""
        sums: list[float] = self._native.sums()
        return sums

    def measure(self, due: Sequence[int], rates: Sequence[float]) -> list[float]:
        """Measure the weights' norms of layers that are refreshed; returns by what the step multiplies each weight to take
        its growth back.

        Args:
            due: the layers' places.
            rates: their learning rates.
        """
        factors: list[float] = self._native.measure(list(due), list(rates), torch.get_num_threads())
        return factors

    def bound(self, rates: Sequence[float]) -> list[float]:
        """Decide how far they go, by each layer's learning rate; returns ``<h, g~>`` of layers, then of other parameters."""
        products: list[float] = self._native.bound(list(rates))
        return products

    def apply(self, places: Sequence[int], lr: float, weight_decays: Sequence[float]) -> None:
        """Move the parameters at ``places``, each with a weight decay of its own."""
        self._native.apply(list(places), lr, list(weight_decays), torch.get_num_threads())
        torch.autograd.graph.increment_version([self._tensors[i] for i in places])


def known_finite(tensors: Sequence[Tensor]) -> bool | None:
    """Whether no entry of any is NaN or infinite, as :func:`lnb_kernels.multi_tensor.all_finite` tells it.

    None for tensors that the CPU's kernel does not take as they lie, and where another backend is set: ask that function.
    """
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) != 1 or torch.compiler.is_compiling() or not StepTables.serves(tensors):
        return None
    native = _native.module()
    finite: bool = native.all_finite(
        list(map(Tensor.data_ptr, tensors)), native_type(native, kinds.pop()), list(map(Tensor.numel, tensors)),
        torch.get_num_threads(),
    )  # fmt: skip
    return finite


def _plain(tensors: Sequence[Tensor]) -> bool:
    return (
        set(map(type, tensors)) <= PLAIN
        and {tensor.dtype for tensor in tensors} <= _DTYPES
        and all(tensor.is_cpu for tensor in tensors)
        and True not in map(Tensor.is_neg, tensors)
        and {tensor.layout for tensor in tensors} <= {torch.strided}
    )
