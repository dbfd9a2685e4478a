"""Linear Neuron Boosting as the paper states it, in dense matrices and plain PyTorch, to test the optimizer against.

Source: D. Munoz, Simple Linear Neuron Boosting, arXiv:2502.01131. Nothing here is shared with the packages under test:
rows are gathered by this file's own hooks, convolutions are unfolded into rows, and every metric and preconditioner is
a dense matrix. Clarity is the only aim; memory and time are not.

Where the algorithm leaves room, this file reads it as follows.

* Bias correction: the state keeps the raw average, every use divides by ``1 - b**t``. So do conjugate gradients, the
  preconditioner and ``<h, g~>``: all of them see corrected values, the current batch included.
* Rows of a layer: those of every use in every forward pass since the last step, pooled. ``N`` counts the pooled rows,
  and means of ``x`` and ``x^2`` are means over the pooled positions, not means of means.
* Convolution moments are per channel over the input without the zeros of zero padding, although the rows hold those; with
  the pixels that other padding modes repeat.
  All taps of a channel share its moments. Groups: the average variance that shrinks a layer's variances runs over
  all channels of the layer; each group then has its own matrices made from its own channels.
* Without a bias the preconditioner is the diagonal ``1 / (var + mu^2)``, not the inverse of ``diag(var) + mu mu'``.
* The ridge acts on weights only. The preconditioner has no ridge.
* The first step starts conjugate gradients at zero and has all its iterations. Later steps start from the last ``h``,
  before its division by ``z``.
* ``||r|| <= 1e-5 ||g~||`` is asked before every iteration, so a good enough start is kept as it is; ``r`` is the plain
  residual, its norm that of the whole layer (all rows, all groups, weights and biases), with one alpha and beta each.
  An iteration whose curvature ``<p, Ap>`` is not positive takes no step.
* ``z`` is one number for the model. Weight decay reads the parameter before the step, biases and norms included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Layer = nn.Linear | nn.Conv2d


@dataclass
class LayerState:
    """What one layer keeps between steps: raw averages of ``x`` and ``x^2``, and the last unnormalised direction."""

    mean: Tensor  # [features]
    square: Tensor  # [features]
    direction: Tensor | None = None  # [groups, m / groups, d or d + 1]
    inputs: list[Tensor] = field(default_factory=list)  # of the current step only


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """Rows ``[groups, N, d]`` (``groups`` is 1 for a linear layer) whose products with the weight are the output."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, layer.in_features)
    if x.dim() == 3:
        x = x[None]
    if layer.padding_mode != "zeros":
        x, before, after = seen(layer, x), [0, 0], [0, 0]
    elif layer.padding == "same":
        total = [dilation * (kernel - 1) for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        before = [t // 2 for t in total]  # an odd total puts the larger part behind
        after = [t - b for t, b in zip(total, before, strict=True)]
    elif layer.padding == "valid":
        before = after = [0, 0]
    else:
        before = after = list(layer.padding)
    x = F.pad(x, (before[1], after[1], before[0], after[0]))
    patches = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)  # [B, C kh kw, L]
    grouped = patches.unflatten(1, (layer.groups, -1))  # [B, groups, d, L]: the channel is the slowest of (c, kh, kw)
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def seen(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The pixels that count: those of the image, and those that another padding mode than zeros repeats beside it."""
    if layer.padding_mode == "zeros":
        return x
    height, width = (
        (total // 2, total - total // 2) if layer.padding == "same" else (padding, padding)
        for total, padding in zip(
            [dilation * (kernel - 1) for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)],
            layer.padding if isinstance(layer.padding, tuple) else (0, 0),
            strict=True,
        )
    )
    return F.pad(x, (*width, *height), mode=layer.padding_mode)


def feature_moments(layer: Layer, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and mean square ``[features]`` of the layer's input features (linear) or of its channels' pixels (conv)."""
    if isinstance(layer, nn.Linear):
        values = torch.cat([x.reshape(-1, layer.in_features) for x in inputs])
    else:
        values = torch.cat([seen(layer, x).movedim(-3, -1).reshape(-1, layer.in_channels) for x in inputs])
    return values.mean(0), values.square().mean(0)


def metric(rows: Tensor, ridge: float, bias: bool) -> Tensor:
    """``X'X/N + ridge I``, or with a bias ``[X 1]'[X 1]/N + ridge diag(1..1, 0)``, for each group of ``rows``."""
    penalty = torch.full_like(rows[0, 0], ridge)
    if bias:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
        penalty = torch.cat([penalty, torch.zeros_like(penalty[:1])])
    return rows.mT @ rows / rows.shape[1] + torch.diag(penalty)


def preconditioner(mu: Tensor, var: Tensor, bias: bool) -> Tensor:
    """The dense inverse of ``[[diag(var) + mu mu', mu], [mu', 1]]``, or without a bias of ``diag(var + mu^2)``."""
    if not bias:
        return torch.diag(1 / (var + mu**2))
    one = torch.ones(1, 1, dtype=mu.dtype)
    top = torch.cat([torch.diag(var) + torch.outer(mu, mu), mu[:, None]], 1)
    return torch.linalg.inv(torch.cat([top, torch.cat([mu[None], one], 1)]))


def conjugate_gradients(a: Tensor, p_inv: Tensor, g: Tensor, start: Tensor | None, iterations: int) -> Tensor:
    """Iterate towards ``h a = g`` from ``start``; ``a``, ``p_inv`` [groups, d, d], ``g`` [groups, m, d]."""
    h = torch.zeros_like(g) if start is None else start
    r = g - h @ a
    p = y = r @ p_inv
    rho = (r * y).sum()
    for _ in range(iterations):
        if r.norm() <= 1e-5 * g.norm():
            break
        ap = p @ a
        curvature = (p * ap).sum()
        if curvature <= 0:
            break
        alpha = rho / curvature
        h = h + alpha * p
        r = r - alpha * ap
        y = r @ p_inv
        rho, previous = (r * y).sum(), rho
        p = y + (rho / previous) * p
    return h


class PaperReference:
    """Takes steps on ``model`` in place. After each step ``inner`` is the sum of ``<h, g~>`` over all parameters."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.9,
        b_mu: float = 0.9,
        b_nu: float = 0.999,
        shrinkage: float = 0.1,
        ridge: float = 0.1,
        cg_iterations: int = 2,
        min_norm: float = 1e-2,
        weight_decay: float = 1e-4,
        solver: str = "pcg",
    ) -> None:
        if solver not in ("pcg", "arrow"):
            raise ValueError(f"solver must be 'pcg' or 'arrow', got {solver!r}")
        self.lr, self.momentum, self.b_mu, self.b_nu = lr, momentum, b_mu, b_nu
        self.shrinkage, self.ridge, self.cg_iterations = shrinkage, ridge, cg_iterations
        self.min_norm, self.weight_decay, self.solver = min_norm, weight_decay, solver
        self.params = list(model.parameters())
        self.grad_average = {p: torch.zeros_like(p) for p in self.params}
        self.layers: dict[Layer, LayerState] = {}
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                features = module.in_features if isinstance(module, nn.Linear) else module.in_channels
                zeros = module.weight.new_zeros(features)
                self.layers[module] = LayerState(zeros, zeros)
        self.steps = 0
        self.inner = math.nan

    def step(self, *loss_fns: Callable[[], Tensor]) -> None:
        """One step on the sum of the losses; each function is one micro-batch that runs the model's forward pass."""
        grads = self._gradients(loss_fns)
        with torch.no_grad():
            self.steps += 1
            for param, grad in grads.items():  # 1.
                self.grad_average[param] = self.momentum * self.grad_average[param] + (1 - self.momentum) * grad
            g = {p: average / (1 - self.momentum**self.steps) for p, average in self.grad_average.items()}
            h = dict(g)  # 6.
            for layer, state in self.layers.items():
                h.update(self._layer_direction(layer, state, g))
            self.inner = sum((h[p] * g[p]).sum().item() for p in self.params)  # 7.
            z = max(self.min_norm, math.sqrt(max(0.0, self.inner)))
            for p in self.params:  # 8.
                p -= self.lr * (h[p] / z + self.weight_decay * p)

    def _gradients(self, loss_fns: Sequence[Callable[[], Tensor]]) -> dict[Tensor, Tensor]:
        """Sum of the gradients of the losses; leaves the inputs that each layer saw in its state."""
        hooks = []
        for layer, state in self.layers.items():
            state.inputs = []

            def keep(_module: nn.Module, args: tuple[Tensor, ...], inputs: list[Tensor] = state.inputs) -> None:
                inputs.append(args[0].detach())

            hooks.append(layer.register_forward_pre_hook(keep))
        total = {p: torch.zeros_like(p) for p in self.params}
        try:
            for loss_fn in loss_fns:
                for p, grad in zip(self.params, torch.autograd.grad(loss_fn(), self.params), strict=True):
                    total[p] += grad
        finally:
            for hook in hooks:
                hook.remove()
        return total

    def _layer_direction(self, layer: Layer, state: LayerState, g: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        mean, square = feature_moments(layer, state.inputs)  # 2.
        state.mean = self.b_mu * state.mean + (1 - self.b_mu) * mean
        state.square = self.b_nu * state.square + (1 - self.b_nu) * square
        mu = state.mean / (1 - self.b_mu**self.steps)
        nu = state.square / (1 - self.b_nu**self.steps)
        var = (nu - mu**2).clamp(min=0)  # 3.
        var = (1 - self.shrinkage) * var + self.shrinkage * var.mean()

        weight, bias = layer.weight, layer.bias
        groups, taps = (1, 1) if isinstance(layer, nn.Linear) else (layer.groups, math.prod(layer.kernel_size))
        g_rows = g[weight].reshape(groups, weight.shape[0] // groups, -1)
        if bias is not None:
            g_rows = torch.cat([g_rows, g[bias].reshape(groups, -1, 1)], -1)
        p_inv = torch.stack(  # 4.
            [
                preconditioner(m.repeat_interleave(taps), v.repeat_interleave(taps), bias is not None)
                for m, v in zip(mu.chunk(groups), var.chunk(groups), strict=True)
            ]
        )
        if self.solver == "arrow":
            rows_h = g_rows @ p_inv
        else:  # 5.
            rows = torch.cat([input_rows(layer, x) for x in state.inputs], 1)
            a = metric(rows, self.ridge, bias is not None)
            rows_h = conjugate_gradients(a, p_inv, g_rows, state.direction, self.cg_iterations)
            state.direction = rows_h
        if bias is None:
            return {weight: rows_h.reshape(weight.shape)}
        return {weight: rows_h[..., :-1].reshape(weight.shape), bias: rows_h[..., -1].reshape(bias.shape)}
