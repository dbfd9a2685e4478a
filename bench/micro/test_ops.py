"""Every product op beside what one would otherwise write, by each backend that serves the device.

Each benchmark first checks its result against the plain one, in float64 where that is cheap: no speed is reported for a
wrong result. `make bench ARGS=--benchmark-json=FILE` writes times with device, versions and date; `make bench-compare`
compares two such files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lnb_kernels as lk

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
Call = Callable[[], Any]


@dataclass
class Case:
    """One problem: the op, what one would write without it, and how far the two may be apart."""

    ours: Call
    plain: Call
    rtol: float = 1e-3


def rows(device: str, dtype: torch.dtype, n: int, d: int) -> Tensor:
    return torch.randn(n, d, device=device).to(dtype)


def second_moment(device: str, dtype: torch.dtype, n: int, d: int) -> Case:
    x = rows(device, dtype, n, d)

    def plain() -> Tensor:
        full = F.pad(x, (0, 1), value=1.0)
        return (full.t() @ full).float()

    return Case(lambda: lk.second_moment(x), plain, 2e-2 if dtype == torch.bfloat16 else 1e-3)


def linear(device: str, dtype: torch.dtype, n: int, d: int) -> Case:
    """Forward and backward pass with a probe, against the layer and a product on its input."""
    x, weight = rows(device, dtype, n, d), rows(device, dtype, d, d).requires_grad_()
    upstream = torch.ones(n, d, device=device, dtype=dtype)
    probe = torch.zeros((), device=device).expand(d + 1, d + 1).requires_grad_()

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(lk.linear(x, weight, None, probe), (weight, probe), upstream)

    def plain() -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(F.linear(x, weight), weight, upstream)
        full = F.pad(x, (0, 1), value=1.0)
        return gradient, (full.t() @ full).float()

    return Case(ours, plain, 2e-2 if dtype == torch.bfloat16 else 1e-3)


def conv2d_second_moment(device: str, dtype: torch.dtype, batch: int, channels: int, size: int) -> Case:
    x = torch.randn(batch, channels, size, size, device=device).to(dtype)

    def plain() -> Tensor:
        patches = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
        return (patches @ patches.t()).float()

    ours = lambda: lk.conv2d_second_moment(x, 3, padding=1)[0, :-1, :-1]  # noqa: E731
    return Case(ours, plain, 2e-2 if dtype == torch.bfloat16 else 1e-3)


def conv2d(device: str, dtype: torch.dtype, batch: int, channels: int, size: int) -> Case:
    """Forward and backward pass with a probe, against the layer and a product of its patches."""
    x = torch.randn(batch, channels, size, size, device=device).to(dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype).requires_grad_()
    upstream = torch.ones(batch, channels, size, size, device=device, dtype=dtype)
    side = 9 * channels + 1
    probe = torch.zeros((), device=device).expand(1, side, side).requires_grad_()

    def ours() -> tuple[Tensor, ...]:
        gradient, s = torch.autograd.grad(lk.conv2d(x, weight, padding=1, probe=probe), (weight, probe), upstream)
        return gradient, s[0, :-1, :-1]

    def plain() -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, upstream)
        patches = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
        return gradient, patches @ patches.t()

    return Case(ours, plain)


def cov_matvec(device: str, dtype: torch.dtype, n: int, d: int) -> Case:
    """Against the product that autograd gives: forward mode, then reverse mode, through the layer."""
    x, v = rows(device, dtype, n, d), rows(device, dtype, 10, d)

    def plain() -> Tensor:
        _, pull = torch.func.vjp(lambda w: F.linear(x, w), torch.zeros_like(v))
        _, pushed = torch.func.jvp(lambda w: F.linear(x, w), (torch.zeros_like(v),), (v,))
        return pull(pushed)[0] / n

    return Case(lambda: lk.cov_matvec(x, v), plain)


def conv2d_cov_matvec(device: str, dtype: torch.dtype, batch: int, channels: int, size: int) -> Case:
    x = torch.randn(batch, channels, size, size, device=device).to(dtype)
    v = rows(device, dtype, channels, 9 * channels)

    def layer(weight: Tensor) -> Tensor:
        return F.conv2d(x, weight.view(channels, channels, 3, 3), padding=1)

    def plain() -> Tensor:
        _, pull = torch.func.vjp(layer, torch.zeros_like(v))
        _, pushed = torch.func.jvp(layer, (torch.zeros_like(v),), (v,))
        return pull(pushed)[0] / (batch * size * size)

    return Case(lambda: lk.conv2d_cov_matvec(x, v, 3, padding=1), plain)


def pcg(device: str, dtype: torch.dtype, d: int, m: int) -> Case:
    """As many iterations as make it a solution, against the exact solution."""
    x = rows(device, dtype, 4 * d, d)
    s, g = lk.second_moment(x), rows(device, dtype, m, d)
    damped = x.t() @ x / (4 * d) + 0.5 * torch.eye(d, device=device)
    plain = lambda: torch.linalg.solve(damped, g.t()).t()  # noqa: E731
    return Case(lambda: lk.pcg(s, g, iterations=16, ridge=0.5, scope="neuron")[0], plain, 1e-2)


def pcg_vectors(device: str, dtype: torch.dtype, d: int, m: int) -> Case:
    """The form for any matvec, one step size per layer, against the same iteration in plain PyTorch."""
    x, g = rows(device, dtype, 4 * d, d), rows(device, dtype, m, d)
    damped = x.t() @ x / (4 * d) + 0.5 * torch.eye(d, device=device)

    def plain() -> Tensor:
        h, r, p = torch.zeros_like(g), g.clone(), g.clone()
        rr = r.square().sum()
        for _ in range(4):
            ap = p @ damped
            alpha = rr / (p * ap).sum()
            h, r, old = h + alpha * p, r - alpha * ap, rr
            rr = r.square().sum()
            p = r + rr / old * p
        return h

    return Case(lambda: lk.pcg(lambda v: v @ damped, g, iterations=4)[0], plain)


def spd_inverse(device: str, dtype: torch.dtype, count: int, n: int) -> Case:
    x = torch.randn(count, 2 * n, n, device=device)
    matrices = (x.mT @ x / (2 * n) + 0.1 * torch.eye(n, device=device)).to(dtype)
    plain = lambda: torch.cholesky_inverse(torch.linalg.cholesky(matrices))  # noqa: E731
    return Case(lambda: lk.spd_inverse(matrices)[0], plain)


def arrow_solve(device: str, dtype: torch.dtype, d: int, m: int) -> Case:
    mu, var, v = torch.randn(d, device=device), torch.rand(d, device=device) + 0.5, rows(device, dtype, m, d + 1)

    def plain() -> Tensor:
        top = torch.cat((torch.diag(var) + torch.outer(mu, mu), mu.unsqueeze(1)), 1)
        return torch.linalg.solve(torch.cat((top, F.pad(mu, (0, 1), value=1.0).unsqueeze(0))), v.t()).t()

    return Case(lambda: lk.arrow_solve(v, mu, var), plain, 1e-2)


def two_sided_directions_(device: str, dtype: torch.dtype, d: int, m: int) -> Case:
    """Eight layers, their blocks of 128, against products with the block-diagonal matrices, layer by layer.

    The gradients of each row agree in part.
    """
    weights = [rows(device, dtype, m, d) for _ in range(8)]
    inverse, root = (
        torch.stack([torch.eye(128, device=device) + 0.1 * torch.ones(128, 128, device=device)] * (n // 128))
        for n in (d, m)
    )
    squares = [16 * weight.double().square().sum(-1) for weight in weights]  # the agreement of every row is 1/4

    def plain() -> list[Tensor]:
        steps = []
        for weight in weights:
            mixed = torch.block_diag(*root) @ weight
            step = mixed @ torch.block_diag(*inverse)
            steps.append(step * (step * mixed).sum(-1, keepdim=True).rsqrt() / 4)
        return steps

    def ours() -> list[Tensor]:
        steps = [weight.clone() for weight in weights]
        lk.two_sided_directions_(steps, [None] * 8, [inverse] * 8, [None] * 8, [root] * 8, squares)
        return steps

    return Case(ours, plain)


def pcg_layers(device: str, dtype: torch.dtype, layers: int) -> Case:
    """Small layers of growing sizes, as many iterations as make them solutions, against exact ones layer by layer."""
    shapes = [(16 + 2 * i, 32 + 4 * (i % 24)) for i in range(layers)]
    inputs = [rows(device, dtype, 8 * d, d) for _, d in shapes]
    moments, gradients = [lk.second_moment(x) for x in inputs], [rows(device, dtype, m, d) for m, d in shapes]

    def plain() -> list[Tensor]:
        found = []
        for s, g in zip(moments, gradients, strict=True):
            damped = s[:-1, :-1] / s[-1, -1] + 0.5 * torch.eye(g.shape[1], device=device)
            found.append(torch.linalg.solve(damped, g.t()).t())
        return found

    return Case(lambda: lk.pcg_layers(moments, gradients, iterations=12, ridge=0.5)[0], plain, 1e-2)


def newton_schulz(device: str, dtype: torch.dtype, k: int, length: int) -> Case:
    """Against a singular value decomposition: the polar factor, for coefficients under which the steps converge."""
    x = (
        torch.linalg.qr(torch.randn(length, k, device=device))[0].t()
        * torch.linspace(0.5, 1, k, device=device)[:, None]
    )

    def plain() -> Tensor:
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        return left @ right

    return Case(lambda: lk.newton_schulz(x.to(dtype), (1.875, -1.25, 0.375), 6).float(), plain, 1e-3)


def newton_schulz_root(device: str, dtype: torch.dtype, n: int) -> Case:
    """Against an eigendecomposition: the inverse square root, for coefficients under which the steps converge."""
    q = torch.linalg.qr(torch.randn(n, n, device=device))[0]
    power = (q * torch.linspace(0.25, 1, n, device=device)) @ q.t()

    def plain() -> Tensor:
        values, vectors = torch.linalg.eigh(power)
        return (vectors * values.rsqrt()) @ vectors.t()

    return Case(lambda: lk.newton_schulz_root(power.to(dtype), (1.875, -1.25, 0.375), 6).float(), plain)


FLOAT, BF16 = torch.float32, torch.bfloat16
CASES: dict[str, tuple[Callable[..., Case], torch.dtype, tuple[int, ...]]] = {
    "second_moment-8192x512": (second_moment, FLOAT, (8192, 512)),
    "second_moment-8192x512-bf16": (second_moment, BF16, (8192, 512)),
    "second_moment-1000x784": (second_moment, FLOAT, (1000, 784)),
    "second_moment-1000x784-bf16": (second_moment, BF16, (1000, 784)),
    "linear-2048x512": (linear, FLOAT, (2048, 512)),
    "linear-2048x512-bf16": (linear, BF16, (2048, 512)),
    "conv2d_second_moment-16x64x32x32": (conv2d_second_moment, FLOAT, (16, 64, 32)),
    "conv2d_second_moment-16x64x32x32-bf16": (conv2d_second_moment, BF16, (16, 64, 32)),
    "conv2d_second_moment-8x256x8x8": (conv2d_second_moment, FLOAT, (8, 256, 8)),
    "conv2d-16x64x32x32": (conv2d, FLOAT, (16, 64, 32)),
    "cov_matvec-8192x512": (cov_matvec, FLOAT, (8192, 512)),
    "conv2d_cov_matvec-8x32x32x32": (conv2d_cov_matvec, FLOAT, (8, 32, 32)),
    "pcg-512x256": (pcg, FLOAT, (512, 256)),
    "pcg_rows-128x512": (pcg, FLOAT, (128, 512)),
    "pcg_vectors-1024x512": (pcg_vectors, FLOAT, (1024, 512)),
    "pcg_layers-48": (pcg_layers, FLOAT, (48,)),
    "newton_schulz-256x512": (newton_schulz, FLOAT, (256, 512)),
    "newton_schulz_root-256": (newton_schulz_root, FLOAT, (256,)),
    "spd_inverse-32x128": (spd_inverse, FLOAT, (32, 128)),
    "arrow_solve-512x256": (arrow_solve, FLOAT, (512, 256)),
    "two_sided_directions_-512x256": (two_sided_directions_, FLOAT, (512, 256)),
}


# Layers are measured by the op that their moment comes from; `pcg_layers` on a CPU solves each layer by `pcg_rows`.
SERVED_BY = {"linear": "second_moment", "conv2d": "conv2d_second_moment"}


@pytest.mark.parametrize("who", ["plain", "reference", "native", "triton"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_time(compare: Callable[..., None], name: str, device: str, who: str) -> None:
    make, dtype, sizes = CASES[name]
    op = name.partition("-")[0]
    by = "pcg_rows" if (op, device) == ("pcg_layers", "cpu") else SERVED_BY.get(op, op)
    compare(by, who, device, lambda: make(device, dtype, *sizes))
