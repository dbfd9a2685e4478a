"""The reference of paper mode, itself checked: cases small enough to do by hand, and im2col against the convolution."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer.paper_reference import PaperReference, conjugate_gradients, input_rows, metric, preconditioner
from torch import Tensor, nn
from torch.nn import functional as F


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def test_two_steps_of_one_weight_by_hand() -> None:
    layer = linear([[3.0]])
    reference = PaperReference(layer, lr=0.5, ridge=1.0, weight_decay=0.1)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    reference.step(lambda: layer(x).sum())
    # g = 2 after bias correction, A = 2^2 + 1, h = 2/5, <h, g> = 4/5
    w = 3 - 0.5 * (0.4 / math.sqrt(0.8) + 0.1 * 3)
    assert layer.weight.item() == pytest.approx(w, rel=1e-14)
    y = torch.tensor([[1.0]], dtype=torch.float64)
    reference.step(lambda: layer(y).sum())
    # g = (0.9 * 0.2 + 0.1 * 1) / (1 - 0.81), A = 1 + 1; one variable, so one iteration is exact from any start
    g = 0.28 / 0.19
    w -= 0.5 * (g / 2 / math.sqrt(g * g / 2) + 0.1 * w)
    assert layer.weight.item() == pytest.approx(w, rel=1e-14)


def test_preconditioned_warm_started_iterations_by_hand() -> None:
    layer = linear([[0.0, 0.0]])
    reference = PaperReference(layer, lr=1.0, ridge=0.5, shrinkage=0.2, cg_iterations=1, weight_decay=0.0)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    # The same batch twice: mu = (0.5, 1), nu = (0.5, 2), var = (0.25, 1) shrunk towards 0.625 by a fifth.
    g = (0.5, 1.0)
    a = (0.5 + 0.5, 2.0 + 0.5)
    p_inv = (1 / (0.325 + 0.25), 1 / (0.925 + 1.0))
    h, w = [0.0, 0.0], [0.0, 0.0]
    for _ in range(2):
        r = [g[i] - a[i] * h[i] for i in range(2)]
        y = [p_inv[i] * r[i] for i in range(2)]
        alpha = sum(r[i] * y[i] for i in range(2)) / sum(a[i] * y[i] ** 2 for i in range(2))
        h = [h[i] + alpha * y[i] for i in range(2)]
        z = math.sqrt(sum(h[i] * g[i] for i in range(2)))
        w = [w[i] - h[i] / z for i in range(2)]
        reference.step(lambda: layer(x).mean())
        assert layer.weight[0].tolist() == pytest.approx(w, rel=1e-13)


def test_bias_without_ridge_by_hand() -> None:
    layer = linear([[1.0]], [0.0])
    reference = PaperReference(layer, lr=1.0, ridge=0.25, weight_decay=0.0)
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    reference.step(lambda: layer(x)[1].sum())
    # g = (2, 1); [x 1]'[x 1]/2 = [[2, 1], [1, 1]], plus 0.25 on the weight only; two unknowns, two iterations
    a, b, c, det = 2.25, 1.0, 1.0, 1.25
    h = ((c * 2 - b * 1) / det, (a * 1 - b * 2) / det)
    z = math.sqrt(2 * h[0] + h[1])
    assert layer.weight.item() == pytest.approx(1 - h[0] / z, rel=1e-13)
    assert layer.bias.item() == pytest.approx(-h[1] / z, rel=1e-13)


def test_other_parameters_follow_the_gradient_and_min_norm_bounds_the_step() -> None:
    norm = nn.LayerNorm(2, elementwise_affine=True, dtype=torch.float64)
    direction = torch.tensor([3e-3, 4e-3], dtype=torch.float64)
    reference = PaperReference(norm, lr=1.0, weight_decay=0.0, min_norm=1e-2)
    reference.step(lambda: (norm.bias * direction).sum() + 0 * norm.weight.sum())
    torch.testing.assert_close(norm.bias.detach(), -direction / 1e-2, rtol=1e-14, atol=0)


def test_preconditioner_solves_rows_as_written() -> None:
    mu, var = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1
    rows = torch.randn(3, 5, dtype=torch.float64)
    w1 = (rows[:, :4] - mu * rows[:, 4:]) / var
    b1 = rows[:, 4:] - (mu * w1).sum(1, keepdim=True)
    solved = rows @ preconditioner(mu, var, bias=True)
    torch.testing.assert_close(solved, torch.cat([w1, b1], 1), rtol=1e-11, atol=1e-11)


def test_conjugate_gradients_reach_the_solution_and_stop() -> None:
    rows = torch.randn(2, 30, 4, dtype=torch.float64)
    a = metric(rows, ridge=0.1, bias=True)
    g = torch.randn(2, 3, 5, dtype=torch.float64)
    identity = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    exact = torch.linalg.solve(a, g.mT).mT
    h = conjugate_gradients(a, identity, g, None, iterations=200)
    torch.testing.assert_close(h, exact, rtol=1e-3, atol=1e-4)
    assert torch.equal(conjugate_gradients(a, identity, g, exact, iterations=3), exact)
    zero = torch.zeros_like(g)
    assert torch.equal(conjugate_gradients(a, identity, zero, None, iterations=3), zero)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, dtype=torch.float64),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), bias=False, dtype=torch.float64),
        nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2), groups=2, dtype=torch.float64),
        nn.Conv2d(4, 8, 2, padding="valid", groups=4, dtype=torch.float64),
    ],
    ids=["plain", "strided", "same-grouped", "depthwise"],
)
def test_rows_times_weight_are_the_convolution(layer: nn.Conv2d) -> None:
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    weight = layer.weight.reshape(layer.groups, layer.out_channels // layer.groups, -1)
    out = input_rows(layer, x) @ weight.mT  # [groups, B L, m / groups]
    if layer.bias is not None:
        out = out + layer.bias.reshape(layer.groups, 1, -1)
    expected: Tensor = layer(x)
    expected = expected.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_pixelwise_convolution_is_a_linear_layer() -> None:
    conv = nn.Conv2d(3, 4, 1, dtype=torch.float64)
    dense = linear(conv.weight.flatten(1).tolist(), conv.bias.tolist())
    x = torch.randn(5, 3, 4, 2, dtype=torch.float64) + 1
    references = PaperReference(conv, lr=0.1), PaperReference(dense, lr=0.1)
    for _ in range(3):
        references[0].step(lambda: F.softplus(conv(x)).mean())
        references[1].step(lambda: F.softplus(dense(x.movedim(1, -1))).mean())
    torch.testing.assert_close(conv.weight.flatten(1), dense.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(conv.bias, dense.bias, rtol=1e-12, atol=1e-12)
