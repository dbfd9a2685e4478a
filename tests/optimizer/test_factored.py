"""The cached factor of a layer's metric against dense linear algebra."""

from __future__ import annotations

import pytest
import torch

import lnb
import lnb_kernels as lk
from lnb.layers.claimed import take_inventory
from lnb.statistics.factored import Factor, block_count, factorize
from lnb.statistics.running import ridge_of

D, ROWS, N = 12, 5, 40


def moment(x: torch.Tensor, blocks: int = 1) -> torch.Tensor:
    return (lk.second_moment(x, blocks=blocks) / x.shape[0]).unsqueeze(0)


def dense_metric(s: torch.Tensor, ridge: float, with_bias: bool) -> torch.Tensor:
    size = D + 1 if with_bias else D
    metric = s[0, 0, :size, :size].clone()
    metric.diagonal()[:D] += ridge
    return metric


def solved(factor: Factor, gradient: torch.Tensor) -> torch.Tensor:
    """``h`` of a joined gradient ``[groups, rows, columns]``."""
    bias = gradient[..., D:] if gradient.shape[-1] > D else None
    return torch.cat([part for part in factor.solve(gradient[..., :D], bias) if part is not None], dim=-1)


@pytest.fixture
def x() -> torch.Tensor:
    mixing = torch.randn(D, D, dtype=torch.float64)
    return torch.randn(N, D, dtype=torch.float64) @ mixing + 3.0


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_solve_is_linalg_solve(x: torch.Tensor, with_bias: bool, ridge: float) -> None:
    s = moment(x)
    g = torch.randn(1, ROWS, D + with_bias, dtype=torch.float64)
    factor = factorize(s, ridge, with_bias=with_bias, inverse=True)
    truth = torch.linalg.solve(dense_metric(s, ridge, with_bias), g[0].mT).mT
    assert torch.allclose(solved(factor, g)[0], truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("with_bias", [True, False])
def test_whiten_then_unwhiten_is_solve(x: torch.Tensor, with_bias: bool) -> None:
    s = moment(x)
    g = torch.randn(1, ROWS, D + with_bias, dtype=torch.float64)
    factor = factorize(s, 0.1, with_bias=with_bias, inverse=False)
    truth = torch.linalg.solve(dense_metric(s, 0.1, with_bias), g[0].mT).mT
    assert torch.allclose(factor.unwhiten(factor.whiten(g))[0], truth, rtol=1e-9, atol=1e-12)


def test_a_whitened_step_changes_outputs_by_its_own_size(x: torch.Tensor) -> None:
    """``E ||D x~||^2 = ||Q||_F^2`` for ``D = Q L~^-1`` without a ridge: the inputs of the white layer are white."""
    factor = factorize(moment(x), 0.0, with_bias=True, inverse=False)
    q = torch.randn(1, ROWS, D + 1, dtype=torch.float64)
    d = factor.unwhiten(q)[0]
    change = x @ d[:, :-1].mT + d[:, -1]
    assert torch.allclose(change.square().sum(1).mean(), q.square().sum(), rtol=1e-9)


@pytest.mark.parametrize("blocks", [2, 3, 4])
@pytest.mark.parametrize("inverse", [True, False])
def test_blocks_solve_the_block_diagonal_covariance_with_the_exact_mean(
    x: torch.Tensor, blocks: int, inverse: bool
) -> None:
    s = moment(x)[0, 0]
    mean = s[-1, :-1]
    own = torch.block_diag(*[torch.ones(D // blocks, D // blocks, dtype=torch.float64)] * blocks)
    covariance = (s[:-1, :-1] - torch.outer(mean, mean)) * own
    metric = s.clone()
    metric[:-1, :-1] = covariance + torch.outer(mean, mean) + 0.1 * torch.eye(D, dtype=torch.float64)
    g = torch.randn(1, ROWS, D + 1, dtype=torch.float64)
    factor = factorize(moment(x, blocks), 0.1, with_bias=True, inverse=inverse)
    found = solved(factor, g) if inverse else factor.unwhiten(factor.whiten(g))
    assert torch.allclose(found[0], torch.linalg.solve(metric, g[0].mT).mT, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("relative", [True, False])
def test_an_offset_of_the_inputs_does_not_change_the_function_step(x: torch.Tensor, relative: bool) -> None:
    """The step of a layer with a bias, as a change of its outputs, is the same for ``x`` and ``c - x``."""
    error = torch.randn(N, ROWS, dtype=torch.float64)

    def change(inputs: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([inputs, torch.ones(N, 1, dtype=torch.float64)], dim=1)
        s = moment(inputs)
        factor = factorize(s, ridge_of(s.flatten(0, 1), 0.2, relative, True, (1,)), with_bias=True, inverse=True)
        return rows @ solved(factor, (error.mT @ rows / N).unsqueeze(0))[0].mT

    assert torch.allclose(change(x), change(5.0 - x), rtol=1e-9, atol=1e-9)


def test_a_failed_factorisation_gets_a_larger_ridge() -> None:
    x = torch.randn(3, D, dtype=torch.float64)  # fewer rows than inputs: singular
    s = moment(x)
    s[0, 0, :-1, :-1] -= 1e-3 * torch.eye(D, dtype=torch.float64)  # and now indefinite
    factor = factorize(s, 0.0, with_bias=True, inverse=True)
    mean = s[0, 0, -1, :-1]
    covariance = s[0, 0, :-1, :-1] - torch.outer(mean, mean)
    larger = covariance.diagonal().clamp(min=0).mean() + torch.finfo(torch.float64).eps
    truth = torch.linalg.inv(covariance + larger * torch.eye(D, dtype=torch.float64))
    assert torch.allclose(factor.matrix[0, 0], truth, rtol=1e-8)


def test_an_indefinite_metric_falls_back_to_its_diagonal() -> None:
    s = torch.eye(3, dtype=torch.float64)
    s[0, 1] = s[1, 0] = 50.0
    s = s.reshape(1, 1, 3, 3)
    factor = factorize(s, 0.0, with_bias=False, inverse=True)
    assert torch.allclose(factor.matrix[0, 0], torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("d_in", "limit", "blocks"),
    [
        (512, None, 1),
        (512, 512, 1),
        (2048, 512, 4),
        (784, 256, 4),
        (787, 256, 1),
        (9, 4, 3),
        (867, 144, 17),
        (257, 144, 1),
        (513, 144, 9),
        (1021, 144, 1021),
        (571, 144, 1),
        (4093, 144, 4093),
        (50257, 144, 1733),
        (7, 1, 7),
    ],
)
def test_block_count(d_in: int, limit: int | None, blocks: int) -> None:
    assert block_count(d_in, limit) == blocks


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "limit", "blocks"),
    [
        (32, 3, 1, 144, 2),
        (48, 3, 1, 144, 3),
        (32, 3, 2, 144, 1),
        (3, 16, 1, 144, 6),  # parts of a channel: 8 rows of 16 taps
        (3, 14, 1, 144, 6),
        (3, 32, 1, 144, 24),
        (6, 31, 6, 144, 31),
        (3, (1, 256), 1, 144, 6),  # parts of one row
        (2, (4, 150), 1, 144, 16),
        (1, (1, 251), 1, 144, 1),  # a prime
        (1, (1, 1009), 1, 144, 1009),
        (64, 1, 1, 16, 4),
        (32, 3, 1, None, 1),
    ],
)
def test_blocks_of_a_convolution_hold_whole_channels_or_parts_of_one(
    channels: int, kernel: int | tuple[int, int], groups: int, limit: int | None, blocks: int
) -> None:
    layer = torch.nn.Conv2d(channels, 12, kernel, groups=groups)
    assert take_inventory(lnb.attach(layer)).layers[0].input_blocks(limit) == blocks


def test_layers_are_batched_like_single_ones(x: torch.Tensor) -> None:
    factors = [factorize(moment(x * k, 2), 0.1, True, inverse=False) for k in (1.0, 2.0)]
    g = torch.randn(2, 1, ROWS, D + 1, dtype=torch.float64)
    means = torch.stack([f.mean for f in factors if f.mean is not None])
    both = Factor(torch.stack([f.matrix for f in factors]), means)
    for i, factor in enumerate(factors):
        assert torch.allclose(both.whiten(g)[i], factor.whiten(g[i]), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 8])  # of the general form, and of prepared tables
@pytest.mark.parametrize("hidden", [False, True])
def test_a_ridge_of_few_samples_and_of_data(steps: int, hidden: bool) -> None:
    """Inputs that have gradients are another layer's doing, not data."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(D, ROWS)
    x = (torch.randn(N, D) @ torch.randn(D, D)).requires_grad_(hidden)
    optimizer = lnb.LNB(layer, 0.01, ridge=0.1, sample_ridge=0.7, data_ridge=1.5, b_s=0.9, refresh_every=1)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    past = 0.9**steps
    counted = N * (1 - past) / (1 + past) * (1.9 / 0.1)
    ridge = 0.1 + 0.7 * D / counted + (0.0 if hidden else 1.5 * D / N)
    covariance = torch.cov(x.detach().double().mT, correction=0)
    metric = covariance + ridge * covariance.diagonal().mean() * torch.eye(D)
    torch.testing.assert_close(
        optimizer.state[layer.weight]["factor"].squeeze(), metric.inverse().float(), rtol=1e-3, atol=1e-5
    )


def test_a_large_vocabulary_gets_small_blocks() -> None:
    """50257 neurons have no divisor near 144: in one block, their second moment alone would take 10 GB."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 50257)
    optimizer = lnb.LNB(layer, 0.05, sample_ridge=0.0, data_ridge=0.0)
    x = torch.randn(8, 4)
    torch.nn.functional.cross_entropy(layer(x), torch.arange(8)).backward()
    before = layer(x).detach()
    optimizer.step()
    squares_of_rows = 8 * 50257  # in float64
    assert sum(row.state_bytes for row in optimizer.plan()) - squares_of_rows < 64 * 50257 * 4
    change = (layer(x).detach() - before).square().mean().sqrt()
    torch.testing.assert_close(float(change), 0.05, rtol=0.2, atol=0)


def test_kernels_that_are_cut_have_the_blocks_of_the_whole_metric() -> None:
    """One step with whole channels' metrics and one with halves; then the state of the one for the other, which starts anew."""
    batch, found = torch.randn(16, 3, 8, 8), []

    def stepped(optimizer: lnb.LNB, layer: torch.nn.Module) -> None:
        optimizer.zero_grad()
        layer(batch).square().mean().backward()
        optimizer.step()

    for size in (None, 8):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 6, 4, 4)
        optimizer = lnb.LNB(layer, block_size=size)
        stepped(optimizer, layer)
        found.append(optimizer.state_dict())
    whole, cut = (saved["state"][0]["second_moment"] for saved in found)
    assert cut.shape == (1, 6, 9, 9)
    for owner in range(6):
        index = [*range(8 * owner, 8 * owner + 8), 48]
        torch.testing.assert_close(cut[0, owner], whole[0, 0][index][:, index])
    resumed = lnb.LNB(layer, block_size=8)
    resumed.load_state_dict(found[0])
    stepped(resumed, layer)
    torch.testing.assert_close(resumed.state[layer.weight]["second_moment"], cut)
