"""The trust regions of single neurons: against dense linear algebra, and against the spectral step that one amortises."""

from __future__ import annotations

import copy

import pytest
import torch
from flops import count_flops
from torch import nn

import lnb
import lnb_kernels as lk
from lnb.statistics.factored import Factor, factorize
from lnb.statistics.orthogonalize import INVERSE_ROOT_FLOPS, inverse_root, orthogonalize
from lnb.trust_regions.spectral import spectral_direction
from lnb.trust_regions.two_sided import output_moment
from lnb_kernels.two_sided.reference import row_scale

D, ROWS, N = 9, 6, 50

Gradient = tuple[torch.Tensor, torch.Tensor | None]


def inputs() -> torch.Tensor:
    return torch.randn(N, D, dtype=torch.float64) @ torch.randn(D, D, dtype=torch.float64) + 2.0


def metric(x: torch.Tensor, with_bias: bool) -> tuple[torch.Tensor, Factor]:
    """The dense metric, ``[D, D]`` or ``[D+1, D+1]``, and its factor with ``C^-1``."""
    rows = torch.cat([x, torch.ones(N, 1, dtype=torch.float64)], dim=1)
    s = (rows.mT @ rows / N).reshape(1, 1, D + 1, D + 1)
    size = D + with_bias
    dense = s[0, 0, :size, :size].clone()
    dense.diagonal()[:D] += 0.1
    return dense, factorize(s, 0.1, with_bias=with_bias, inverse=True)


def gradient(with_bias: bool, rows: int = ROWS) -> Gradient:
    weight = torch.randn(1, rows, D, dtype=torch.float64)
    return weight, torch.randn(1, rows, 1, dtype=torch.float64) if with_bias else None


def direction(g: Gradient, factor: Factor, root: torch.Tensor) -> Gradient:
    weight, bias = g[0].clone(), None if g[1] is None else g[1].clone()
    lk.two_sided_directions_([weight], [bias], [factor.matrix], [factor.mean], [root])
    return weight, bias


def joined(parts: Gradient) -> torch.Tensor:
    return torch.cat([part for part in parts if part is not None], dim=-1)[0]


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (2, 3, 7, 12)], ids=str)
def test_inverse_root_is_that_of_orthogonalize(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(inverse_root(matrix @ matrix.mT) @ matrix, orthogonalize(matrix), rtol=1e-8, atol=1e-8)


def test_inverse_root_is_near_the_exact_one() -> None:
    matrix = torch.randn(8, 40, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    exact = vectors @ torch.diag(values.rsqrt()) @ vectors.mT
    found = inverse_root(matrix @ matrix.mT)
    ratio = torch.linalg.eigvals(torch.linalg.solve(exact, found)).real
    assert bool(((ratio > 0.65) & (ratio < 1.25)).all())


def test_inverse_root_of_zero_is_finite() -> None:
    assert bool(inverse_root(torch.zeros(2, 3, 3)).isfinite().all())
    assert bool(inverse_root(torch.zeros(2, 3, 3), ridge=0.1).isfinite().all())


def test_inverse_root_with_a_ridge_is_that_of_the_sum() -> None:
    matrix = torch.randn(2, 6, 20, dtype=torch.float64) * torch.tensor([1.0, 1e3]).view(2, 1, 1)
    moment = matrix @ matrix.mT
    ridge = 0.3 * moment.diagonal(dim1=-2, dim2=-1).mean(-1).view(2, 1, 1) * torch.eye(6)
    torch.testing.assert_close(inverse_root(moment, ridge=0.3), inverse_root(moment + ridge), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_ridge_bounds_how_far_unknown_directions_are_raised(ridge: float) -> None:
    """Of gradients that all went along one direction, ``P`` says nothing of the others, which noise brings in the next step."""
    n = 100
    common = torch.ones(n, 1, dtype=torch.float64) / n**0.5
    other = torch.zeros(n, 1, dtype=torch.float64)
    other[0], other[1] = 0.5**0.5, -(0.5**0.5)
    moment = n * common @ common.mT

    def raised(ridge: float) -> float:
        root = inverse_root(moment, ridge=ridge)
        return float((root @ other).norm() / (root @ common).norm())

    exact = ((n + ridge) / ridge) ** 0.5
    assert 0.6 * exact < raised(ridge) < 1.6 * exact
    assert raised(0.0) > 400


def test_inverse_root_flops() -> None:
    with count_flops() as counter:
        inverse_root(torch.eye(10).unsqueeze(0))
    assert counter.get_total_flops() == INVERSE_ROOT_FLOPS * 1000


@pytest.mark.parametrize("with_bias", [True, False])
def test_output_moment_is_the_gradients_second_moment_in_the_white_space(with_bias: bool) -> None:
    dense, factor = metric(inputs(), with_bias)
    g = gradient(with_bias)
    whole = joined(g) @ torch.linalg.solve(dense, joined(g).mT)
    for blocks in (1, 2, 3):
        size = ROWS // blocks
        cut = torch.stack([whole[i : i + size, i : i + size] for i in range(0, ROWS, size)])
        torch.testing.assert_close(output_moment(*g, factor, blocks)[0], cut / whole.diagonal().mean())


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
def test_two_sided_direction_is_the_formula(with_bias: bool, blocks: int) -> None:
    dense, factor = metric(inputs(), with_bias)
    g = gradient(with_bias)
    root = torch.randn(1, blocks, ROWS // blocks, ROWS // blocks, dtype=torch.float64)
    root = root @ root.mT
    step = torch.block_diag(*root[0]) @ joined(g) @ torch.linalg.inv(dense)
    sizes = (step @ dense * step).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(joined(direction(g, factor, root)), step / sizes)


@pytest.mark.parametrize("with_bias", [True, False])
def test_with_its_own_moment_it_is_the_spectral_step(with_bias: bool) -> None:
    """``m <= d``: rows of ``orth(M)`` have unit size, up to the band of the Newton-Schulz steps."""
    x = inputs()
    dense, factor = metric(x, with_bias)
    g = gradient(with_bias)
    ours = joined(direction(g, factor, inverse_root(output_moment(*g, factor, 1))))
    rows = torch.cat([x, torch.ones(N, 1, dtype=torch.float64)], dim=1)
    lower = factorize((rows.mT @ rows / N).reshape(1, 1, D + 1, D + 1), 0.1, with_bias=with_bias, inverse=False)
    spectral = spectral_direction(joined(g).unsqueeze(0), lower)[0]
    sizes = (spectral @ dense * spectral).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(ours, spectral / sizes, rtol=1e-6, atol=1e-8)
    assert bool(((sizes > 0.65) & (sizes < 1.25)).all())


def test_rows_that_are_no_descent_direction_stand_still() -> None:
    assert row_scale(torch.tensor([4.0, 0.0, -1.0])).tolist() == [0.5, 0.0, 0.0]


def one_step(trust_region: str, rows: int, scale: float = 1.0, **settings: object) -> tuple[torch.Tensor, nn.Linear]:
    """The change of every output, root mean square over the batch, ``[rows]``; inputs are of size ``scale``."""
    layer = nn.Linear(24, rows).double()
    before = copy.deepcopy(layer)
    x = scale * (torch.randn(200, 24, dtype=torch.float64) + 2.0)
    defaults = {"ridge": 0.0, "weight_decay": 0.0, "nesterov": False}
    defaults |= {"damping": "none", "max_relative_change": None, "sample_ridge": 0.0, "data_ridge": 0.0}
    defaults |= {"output_ridge": 0.0}
    optimizer = lnb.LNB(layer, 0.1, "fast", trust_region=trust_region, **{**defaults, **settings})  # type: ignore[arg-type]
    (layer(x) * torch.randn(200, rows, dtype=torch.float64)).mean().backward()
    optimizer.step()
    return (layer(x) - before(x)).square().mean(0).sqrt().detach(), layer


@pytest.mark.parametrize("trust_region", ["neuron", "two_sided"])
@pytest.mark.parametrize("rows", [1, 8, 24, 300])
def test_lr_is_the_change_of_every_output_whatever_the_width(trust_region: str, rows: int) -> None:
    change, _ = one_step(trust_region, rows)
    torch.testing.assert_close(change, torch.full((rows,), 0.1, dtype=torch.float64))


def test_neuron_region_bounds_every_neuron_of_the_conjugate_gradients_too() -> None:
    change, _ = one_step("neuron", 8, solver="pcg", cg_iterations=60, b_s=0.0, refresh_every=1, ridge_mode="absolute")
    torch.testing.assert_close(change, torch.full((8,), 0.1, dtype=torch.float64), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("kind", ["linear", "grouped convolution"])
@pytest.mark.parametrize("first", [0, 20])
def test_steps_of_data_are_in_proportion_to_its_size(kind: str, first: int) -> None:
    """Inputs 1,000 times as large change outputs that many times over the square root of 3, in every form of the step.

    Gradients with respect to the outputs are given, so that they are the same for both; ``first`` is the step compared.
    """

    def change(factor: float, hidden: bool = False) -> torch.Tensor:
        torch.manual_seed(3)
        layer = nn.Linear(6, 8, False) if kind == "linear" else nn.Conv2d(6, 8, 1, groups=2, bias=False)
        optimizer = lnb.LNB(layer, 0.002, ridge=1e-4, sample_ridge=0.0, data_ridge=0.0)
        for _ in range(first + 1):
            x = (factor * torch.randn(64, 6, *([] if kind == "linear" else [1, 1]))).requires_grad_(hidden)
            before = layer(x).detach()
            optimizer.zero_grad()
            (layer(x) * torch.randn(8).view(before[0].shape)).mean().backward()
            optimizer.step()
        return (layer(x).detach() - before).square().mean().sqrt()

    usual = change(1.0)
    torch.testing.assert_close(change(1000.0), usual * 1000 / 3**0.5, rtol=0.1, atol=0.0)
    torch.testing.assert_close(change(1000.0, hidden=True), usual, rtol=0.1, atol=0.0)  # of what other layers make


def test_without_a_bound_of_the_weights_outputs_of_any_size_move_by_lr() -> None:
    change, _ = one_step("two_sided", 8, scale=1000.0, max_relative_change=None)
    torch.testing.assert_close(change, torch.full((8,), 0.1, dtype=torch.float64))


def test_two_sided_neurons_move_independently() -> None:
    """Neurons that see one common gradient move together in the neuron region, and hardly in the two_sided one."""

    def common(trust_region: str) -> float:
        torch.manual_seed(2)
        layer = nn.Linear(24, 16).double()
        before = copy.deepcopy(layer)
        x = torch.randn(400, 24, dtype=torch.float64)
        error = torch.randn(400, 1, dtype=torch.float64) + 0.3 * torch.randn(400, 16, dtype=torch.float64)
        optimizer = lnb.LNB(layer, 0.1, trust_region=trust_region, ridge=0.0)
        (layer(x) * error).mean().backward()
        optimizer.step()
        return torch.linalg.matrix_norm(layer(x) - before(x), 2).item() / 20  # per unit of the largest direction

    assert common("neuron") > 0.25
    assert common("two_sided") < 0.14


def test_a_zero_gradient_moves_nothing_and_stays_finite() -> None:
    layer = nn.Linear(4, 3)
    before = copy.deepcopy(layer)
    optimizer = lnb.LNB(layer, 0.1)
    for factor in (0.0, 0.0, 1.0):
        optimizer.zero_grad()
        (layer(torch.randn(20, 4)) * factor).square().mean().backward()
        optimizer.step()
        if factor == 0.0:
            assert torch.equal(layer.weight, before.weight)
    assert bool(layer.weight.isfinite().all())
    assert not torch.equal(layer.weight, before.weight)


def test_two_sided_needs_a_factor() -> None:
    with pytest.raises(ValueError, match=r"trust_region='two_sided'.*solver='pcg'"):
        lnb.LNB(nn.Linear(3, 2), solver="pcg")
