"""A Laplace posterior of a model's last layer, whose input side comes from moments instead of a pass over the training data.

For a softmax over ``f = W x~`` the Gauss-Newton Hessian of the loss of ``N`` examples is
``sum_n (x~_n x~_n') (x) (diag p_n - p_n p_n')``. Its Kronecker approximation (Martens and Grosse, "Optimizing Neural Networks
with Kronecker-factored Approximate Curvature", arXiv:1503.05671; for posteriors: Ritter, Botev and Barber, "A Scalable Laplace
Approximation for Neural Networks", 2018) is ``A (x) B`` with

    ``A = E[x~ x~']``   and   ``B = sum_n (diag p_n - p_n p_n')``.

``A`` is what a :class:`lnb.moments.LayerMoment` has; its mean is the row of the bias, which stays joined with the weight where
the moment is full. ``B`` needs the outputs alone, of some examples (:func:`output_factor`). With a Gaussian prior of precision
``t`` the posterior of ``[W b]`` has precision ``A (x) B + t``. In laplace-torch's terms ``kfacs`` of the layer are ``[B, A]`` and
``[B]`` (:meth:`LastLayerPosterior.kfacs`): it holds weight and bias apart.

Predictions are those of the linearised model, ``f ~ N(f(x), V(x))``, by MacKay's approximation
``softmax(f / sqrt(1 + pi/8 diag V))`` (D. MacKay, "The Evidence Framework Applied to Classification Networks", 1992).
"""

from __future__ import annotations

import math
import reprlib

import torch
from torch import Tensor

from lnb.config import check_number
from lnb.moments.record import LayerMoment, require_moment


def output_factor(logits: Tensor, total: float) -> Tensor:
    """``B``: the sum over ``total`` training examples of ``diag p - p p'``, estimated from the logits of some.

    Args:
        logits: ``[N, classes]`` of examples like those of the training.
        total: how many examples the training had.

    Returns:
        ``[classes, classes]`` float64, on the CPU.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the logits hold NaN or inf.
    """
    check_number("total", total, low=0.0, low_allowed=False)
    p = _require_samples("logits", logits, None).softmax(1)
    factor: Tensor = total * (torch.diag(p.mean(0)) - p.mT @ p / len(p))
    return factor


class LastLayerPosterior:
    """The Gaussian posterior of a last linear layer.

    Args:
        moment: of the layer's inputs. Blocks count as a block-diagonal ``A``; the bias is then apart from the weight.
        factor: ``B``, of :func:`output_factor`, ``[classes, classes]``.
        prior: precision of the Gaussian prior, > 0: chosen on held-out data, or ``N`` times the weight decay of the mean loss.

    Raises:
        TypeError, ValueError: an argument is not allowed, or ``factor`` is not of this layer.
    """

    def __init__(self, moment: LayerMoment, factor: Tensor, prior: float) -> None:
        moment = require_moment(moment)
        check_number("prior", prior, low=0.0, low_allowed=False)
        info = moment.info
        if info.groups > 1:
            raise ValueError(
                f"layer {info.name!r} has {info.groups} groups; the posterior is of a linear layer without"
            )
        if tuple(factor.shape) != (info.d_out, info.d_out):
            raise ValueError(
                f"factor of shape {tuple(factor.shape)} must be [{info.d_out}, {info.d_out}]: layer {info.name!r} has "
                f"{info.d_out} outputs; make it by output_factor of this model's logits"
            )
        self.info, self.prior = info, float(prior)
        self._moment = moment
        self._factor = factor.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(self._factor).all()):
            raise ValueError("factor holds NaN or inf: look at the logits that it was made of")
        self._outer, self._rows = torch.linalg.eigh(self._factor)
        self._inner, self._axes = torch.linalg.eigh(self._inputs())
        self._outer, self._inner = self._outer.clamp(min=0), self._inner.clamp(min=0)

    @property
    def joint(self) -> bool:
        """Whether the bias is joined with the weight."""
        return self.info.with_bias and self.info.blocks == 1

    def _square(self) -> Tensor:
        """``E[x x']``, zero outside of its blocks."""
        whole: Tensor = torch.block_diag(*self._moment.second_moment[0].to("cpu", torch.float64))
        return whole

    def _inputs(self) -> Tensor:
        """``A``: of ``[x 1]`` where the bias is joined, else of ``x``."""
        square = self._square()
        if not self.joint:
            return square
        mean = self._moment.mean.to("cpu", torch.float64)  # [1, d_in]
        return torch.cat([torch.cat([square, mean.mT], 1), torch.cat([mean, torch.ones(1, 1).double()], 1)])

    def kfacs(self) -> list[list[Tensor]]:
        """The factors as laplace-torch's ``Kron(kfacs)`` of the layer takes them: ``[B, E[x x']]``, and ``[B]`` for a bias.

        Its posterior holds the bias apart from the weight, which :meth:`variance` does not where the moment is full.
        """
        weight = [self._factor.clone(), self._square()]
        return [weight, [self._factor.clone()]] if self.info.with_bias else [weight]

    def variance(self, features: Tensor) -> Tensor:
        """Variance of every output, ``[N, classes]`` float64, for inputs of the layer ``[N, d_in]``.

        Raises:
            TypeError, ValueError: ``features`` are not inputs of the layer, or hold NaN or inf.
        """
        x = _require_samples("features", features, self.info.d_in)
        if self.joint:
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        squares = (x @ self._axes).square()  # [N, inputs]
        inverse = 1 / (self._inner.unsqueeze(1) * self._outer + self.prior)  # [inputs, classes]
        found: Tensor = (squares @ inverse) @ self._rows.square().mT
        if self.info.with_bias and not self.joint:
            found = found + (1 / (self._outer + self.prior)) @ self._rows.square().mT
        return found

    def probabilities(self, features: Tensor, logits: Tensor) -> Tensor:
        """Class probabilities ``[N, classes]`` float64, of inputs of the layer ``[N, d_in]`` and its outputs ``[N, classes]``.

        Raises:
            TypeError, ValueError: an argument is not of the layer, or holds NaN or inf.
        """
        outputs = _require_samples("logits", logits, self.info.d_out)
        if len(outputs) != len(features):
            raise ValueError(f"logits of {len(outputs)} samples do not go with features of {len(features)}")
        return torch.softmax(outputs / (1 + math.pi / 8 * self.variance(features)).sqrt(), 1)


def _require_samples(name: str, value: object, width: int | None) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}={reprlib.repr(value)} must be a real floating-point tensor")
    if value.dim() != 2 or len(value) == 0 or (width is not None and value.shape[1] != width):
        wanted = "classes" if width is None else width
        raise ValueError(f"{name} of shape {tuple(value.shape)} must be samples [N, {wanted}], at least one")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} holds NaN or inf: look at the model and its inputs")
    return value.detach().to("cpu", torch.float64)
