"""How unusual new inputs are for a layer: their Mahalanobis distance from those that its moments are of.

``(x - mu)' (C + ridge)^-1 (x - mu) / d`` has expectation 1 over the inputs that ``mu`` and the covariance ``C`` are of, but
for the ridge, whatever their distribution is; so scores of different layers can be averaged. As a score for inputs far from
the training data: Lee, Lee, Lee and Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks", arXiv:1807.03888 (there, with a mean for each class).
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor, nn

from lnb.config import check_number
from lnb.moments.collection import Moments
from lnb.moments.naming import unwrapped
from lnb.moments.record import LayerMoment, MissingMoment, require_moment
from lnb.moments.taps import Tap, taps_of, watched


class Distance:
    """The factor of a layer's covariance, made once.

    Args:
        moment: of the layer. Diagonal blocks count as the covariance of independent parts.
        ridge: times the mean variance is added to the variances, > 0.
    """

    def __init__(self, moment: LayerMoment, ridge: float) -> None:
        check_number("ridge", ridge, low=0.0, low_allowed=False)
        self.info = moment.info
        covariance = moment.covariance().double()
        variance = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).mean((-2, -1), keepdim=True).unsqueeze(-1)
        added = ridge * torch.where(variance > 0, variance, 1.0)
        eye = torch.eye(self.info.size, dtype=covariance.dtype, device=covariance.device)
        lower, failed = torch.linalg.cholesky_ex(covariance + added * eye)
        if bool((failed != 0).any()):
            raise ValueError(
                f"layer {self.info.name!r}: its covariance is not positive definite with ridge={ridge!r}; raise ridge"
            )
        self.whitener = torch.linalg.solve_triangular(
            lower, eye.expand_as(lower), upper=False
        )  # [groups, blocks, size, size]
        self.mean = moment.mean.double()

    def of(self, samples: Tensor) -> Tensor:
        """The distances of samples ``[groups, N, d_in]``, as means over the groups, ``[N]``."""
        centred = samples.to(self.mean) - self.mean.unsqueeze(1)
        parts: Tensor = centred.unflatten(-1, (self.info.blocks, self.info.size)).transpose(
            1, 2
        )  # [groups, blocks, N, size]
        squares: Tensor = (parts @ self.whitener.mT).square().sum((1, 3))
        return squares.mean(0) / self.info.d_in


def mahalanobis(x: Tensor, moment: LayerMoment, ridge: float = 0.01) -> Tensor:
    """Squared Mahalanobis distance of inputs per feature: about 1 for inputs like those that the moment is of.

    Args:
        x: ``[..., d_in]`` samples of a layer without groups.
        moment: of the layer's inputs.
        ridge: times the mean variance is added to the variances, > 0.

    Returns:
        ``[...]`` float64, on the CPU.

    Raises:
        TypeError, ValueError: ``x`` does not fit, or ``ridge`` is not allowed.
    """
    moment = require_moment(moment)
    info = moment.info
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x={reprlib.repr(x)} must be a real floating-point tensor")
    if info.groups > 1 or x.dim() < 1 or x.shape[-1] != info.d_in:
        raise ValueError(
            f"x of shape {tuple(x.shape)} must be inputs [..., {info.d_in}] of layer {info.name!r} (groups: "
            f"{info.groups}, allowed: 1)"
        )
    distance: Tensor = Distance(moment, ridge).of(x.detach().reshape(1, -1, info.d_in)).reshape(x.shape[:-1])
    return distance


class DriftMonitor:
    """Scores how unusual the inputs of a model's layers are, sample by sample, while the model runs.

    ::

        with lnb.moments.DriftMonitor(model, moments) as monitor:
            model(x)
        monitor.scores()  # {layer: [samples]}, about 1 for data like that of the moments
        monitor.score()  # [samples], the mean over the layers

    Scores of the forward passes since :meth:`reset` are kept, in their order. The first dimension of a layer's input counts
    samples; their positions are averaged. Inside ``nn.MultiheadAttention`` samples cannot be told apart: its projections are
    left out.

    Args:
        model: any model, attached or not; it gets hooks within the ``with`` block alone.
        moments: of its layers.
        layers: names of layers to watch; None for all that have moments and can be watched.
        ridge: times the mean variance is added to the variances, > 0.

    Raises:
        MissingMoment: a layer that is named has no moment.
        TypeError, ValueError: an argument is not allowed, or the moments are of another model.
    """

    def __init__(
        self, model: nn.Module, moments: Moments, *, layers: Iterable[str] | None = None, ridge: float = 0.01
    ) -> None:
        if not isinstance(moments, Moments):
            raise TypeError(f"moments must be a Moments, not {type(moments).__name__}")
        if isinstance(layers, str):
            raise TypeError(f"layers={layers!r} must be a list of names, not a str")
        self._model = unwrapped(model)
        inside = _of_attention(self._model)
        taps = {tap.name: tap for tap, _ in taps_of(self._model) if not inside.intersection(tap.layer.modules)}
        for name in moments:
            moments.parameter(self._model, name)
        names = [name for name in taps if name in moments] if layers is None else list(layers)
        for name in names:
            if name not in moments:
                raise MissingMoment(
                    f"layers: {name!r} has no moment; gather or export it: {reprlib.repr(sorted(moments))} have one"
                )
            if name not in taps:
                raise ValueError(f"layers: {name!r} cannot be watched; these can: {reprlib.repr(sorted(taps))}")
        if not names:
            raise ValueError(f"model={type(model).__name__} has no layer that has a moment and can be watched")
        self._taps = [taps[name] for name in names]
        self._distances = {name: Distance(require_moment(moments[name]), ridge) for name in names}
        self._scores: dict[str, list[Tensor]] = {}
        self._undo = ExitStack()

    def __enter__(self) -> DriftMonitor:
        self._undo.enter_context(watched(self._model, self._taps, self._see))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def reset(self) -> None:
        """Forget all scores."""
        self._scores.clear()

    def scores(self) -> dict[str, Tensor]:
        """Per layer that was reached, the score of every sample since :meth:`reset`, ``[samples]`` float64 on the "
        "CPU."""
        return {name: torch.cat(found) for name, found in self._scores.items()}

    def score(self) -> Tensor:
        """The mean of the layers' scores, ``[samples]``.

        Raises:
            ValueError: no forward pass was seen, or layers saw different numbers of samples.
        """
        found = self.scores()
        if not found or len({len(each) for each in found.values()}) > 1:
            raise ValueError(
                f"score(): the layers saw { ({name: len(each) for name, each in found.items()}) } samples; run the "
                f"model within the "
                f"with block, and read scores() where layers see different numbers"
            )
        return torch.stack(list(found.values())).mean(0)

    @torch.no_grad()
    def _see(self, tap: Tap, x: Tensor, groups: Sequence[int]) -> None:
        distance = self._distances[tap.name]
        kind, module = tap.layer.layer_kind, tap.layer.modules[0]
        samples = kind.samples(module, [kind.kept(module, x)], torch.float64).cpu()
        unbatched = x.dim() == (tap.layer.weight.dim() - 1 if kind.has_patches else 1)
        examples = 1 if unbatched else x.shape[0]
        self._scores.setdefault(tap.name, []).append(distance.of(samples).view(examples, -1).mean(-1))


def _of_attention(model: nn.Module) -> set[nn.Module]:
    """``nn.MultiheadAttention`` modules, and those inside of them."""
    found = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    return {inner for module in found for inner in module.modules()}
