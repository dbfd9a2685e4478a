"""Orthogonalised steps against an SVD, and the sizes that the trust regions promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import lnb
from lnb.statistics.factored import factorize
from lnb.statistics.orthogonalize import orthogonalize
from lnb.trust_regions.rms import ADAMW_RMS, rms_scale
from lnb.trust_regions.spectral import spectral_direction


@pytest.mark.parametrize("shape", [(8, 8), (5, 13), (13, 5), (1, 7), (7, 1), (3, 4, 9, 6)])
def test_orthogonalize_has_the_singular_vectors_of_an_svd(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = s / s.norm(dim=-1, keepdim=True) > 0.005
    values = u.mT @ orthogonalize(matrix) @ vh.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(values, torch.diag_embed(diagonal), atol=1e-9)  # the same singular vectors
    assert bool((diagonal[kept] > 0.65).all())
    assert bool((diagonal[kept] < 1.25).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalize_in_low_precision_stays_near_float64(dtype: torch.dtype) -> None:
    matrix = torch.randn(300, 260)
    exact = orthogonalize(matrix.double())
    error = (orthogonalize(matrix, dtype=dtype).double() - exact).norm() / exact.norm()
    assert error < (0.1 if dtype == torch.bfloat16 else 1e-3)


def test_orthogonalize_of_zero_is_zero() -> None:
    assert not orthogonalize(torch.zeros(3, 4)).any()


def test_spectral_direction_is_the_svd_solution() -> None:
    """``orth(g~ L^-T) L^-1`` with the exact ``orth``, for a metric that is inverted densely."""
    x = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 1.0
    rows = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], 1)
    s = (rows.mT @ rows / 50).reshape(1, 1, 7, 7)
    g = torch.randn(1, 9, 7, dtype=torch.float64)
    metric = s[0, 0].clone()
    metric.diagonal()[:-1] += 0.1
    values, vectors = torch.linalg.eigh(metric)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.mT  # another factor of the same metric
    u, _, vh = torch.linalg.svd(g[0] @ root, full_matrices=False)
    exact = u @ vh @ root * math.sqrt(9 / 7)
    found = spectral_direction(g, factorize(s, 0.1, with_bias=True, inverse=False))[0]
    white = found @ torch.linalg.inv(root) / math.sqrt(9 / 7)
    singular = torch.linalg.svdvals(white)
    assert bool((singular > 0.65).all())
    assert bool((singular < 1.25).all())
    assert torch.allclose(u.mT @ white @ vh.mT, torch.diag(singular).flip(0).flip(1), atol=0.4)
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.97


def one_step(
    trust_region: str, width: int = 32, lr: float = 0.1, **settings: object
) -> tuple[nn.Linear, nn.Linear, torch.Tensor]:
    layer = nn.Linear(24, width).double()
    before = nn.Linear(24, width).double()
    before.load_state_dict(layer.state_dict())
    x = torch.randn(200, 24, dtype=torch.float64) + 2.0
    defaults = {"solver": "cholesky", "ridge": 0.0, "weight_decay": 0.0, "nesterov": False}
    defaults |= {"damping": "none", "max_relative_change": None, "sample_ridge": 0.0, "data_ridge": 0.0}
    defaults |= {"output_ridge": 0.0}
    optimizer = lnb.LNB(layer, lr, "fast", trust_region=trust_region, **{**defaults, **settings})  # type: ignore[arg-type]
    (layer(x) * torch.randn(200, width, dtype=torch.float64)).mean().backward()
    optimizer.step()
    return before, layer, x


@pytest.mark.parametrize("width", [16, 64, 256])
def test_spectral_lr_is_the_rms_change_of_the_outputs_whatever_the_width(width: int) -> None:
    before, after, x = one_step("spectral", width)
    change = (after(x) - before(x)).square().mean().sqrt().item()
    share = min(1.0, math.sqrt(25 / width)) * max(1.0, math.sqrt(width / 25))
    assert 0.065 * share <= change <= 0.125 * share


def test_layer_bounds_the_change_of_the_outputs() -> None:
    before, after, x = one_step("layer", min_norm=1e-12)
    change = (after(x) - before(x)).square().sum(1).mean().sqrt().item()
    assert change == pytest.approx(0.1, rel=1e-6)


def test_global_equals_layer_for_one_layer() -> None:
    torch.manual_seed(1)
    _, one, _ = one_step("layer")
    torch.manual_seed(1)
    _, other, _ = one_step("global")
    assert torch.allclose(one.weight, other.weight, rtol=1e-12)


def test_rms_makes_steps_as_large_as_adamw() -> None:
    before, after, _ = one_step("rms")
    change = torch.cat([(after.weight - before.weight).flatten(), after.bias - before.bias])
    assert change.square().mean().sqrt().item() == pytest.approx(0.1 * ADAMW_RMS, rel=1e-6)


def test_spectral_needs_a_factor() -> None:
    with pytest.raises(ValueError, match=r"trust_region='spectral'.*solver='pcg'"):
        lnb.LNB(nn.Linear(3, 2), trust_region="spectral", solver="pcg")


def test_a_zero_direction_has_no_root_mean_square_to_scale() -> None:
    scales = rms_scale(torch.tensor([0.0, 16.0]), torch.tensor([3, 4]))
    assert scales.tolist() == pytest.approx([0.0, ADAMW_RMS * 2 / 4])
