"""The posterior of a last layer is the Gaussian that its formula says, and laplace-torch's where that is installed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lnb
from lnb.moments import LastLayerPosterior, LayerMoment, output_factor


def layer(bias: bool = True, seed: int = 0, d: int = 6) -> tuple[nn.Linear, Tensor, LayerMoment, Tensor]:
    """A layer of three outputs, its inputs, their moment, and ``B`` by definition."""
    torch.manual_seed(seed)
    last = nn.Linear(d, 3, bias=bias).double()
    x = torch.randn(50, d).double() @ torch.randn(d, d).double() + 1
    moment = lnb.gather_moments(nn.Sequential(last), [x])["0"]
    p = last(x).softmax(1).detach()
    return last, x, moment, sum((torch.diag(each) - torch.outer(each, each) for each in p), torch.zeros(3, 3).double())


@pytest.mark.parametrize("bias", [True, False])
def test_variances_are_those_of_the_dense_posterior(bias: bool) -> None:
    """The inverse of ``A (x) B + t`` as one matrix, between the gradients of the outputs."""
    last, x, moment, factor = layer(bias)
    torch.testing.assert_close(output_factor(last(x), 50), factor)
    posterior = LastLayerPosterior(moment, factor, 0.7)
    rows = torch.cat([x, torch.ones(50, 1)], 1) if bias else x
    precision = torch.kron(factor, rows.mT @ rows / 50) + 0.7 * torch.eye(3 * rows.shape[1]).double()
    gradients = torch.stack([torch.kron(unit, row) for row in rows[:4] for unit in torch.eye(3).double()])
    expected = ((gradients @ precision.inverse()) * gradients).sum(1).view(4, 3)
    torch.testing.assert_close(posterior.variance(x[:4]), expected, rtol=1e-6, atol=1e-9)
    found = posterior.probabilities(x[:4], last(x[:4]))
    torch.testing.assert_close(found, (last(x[:4]) / (1 + math.pi / 8 * expected).sqrt()).softmax(1).detach())
    certain = LastLayerPosterior(moment, factor, 1e12)
    torch.testing.assert_close(certain.probabilities(x, last(x)), last(x).softmax(1).detach(), rtol=1e-5, atol=1e-8)


def test_blocks_are_a_block_diagonal_factor_with_the_bias_apart() -> None:
    last, x, _, factor = layer()
    cut = lnb.gather_moments(nn.Sequential(last), [x], block_size=3)["0"]
    posterior = LastLayerPosterior(cut, factor, 0.3)
    square = torch.block_diag(*(x[:, part].mT @ x[:, part] / 50 for part in (slice(0, 3), slice(3, 6))))
    weight = torch.kron(factor, square) + 0.3 * torch.eye(18).double()
    gradients = torch.stack([torch.kron(unit, x[0]) for unit in torch.eye(3).double()])
    expected = ((gradients @ weight.inverse()) * gradients).sum(1)
    expected = expected + (factor + 0.3 * torch.eye(3).double()).inverse().diagonal()
    torch.testing.assert_close(posterior.variance(x[:1])[0], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(posterior.kfacs()[0][1], square)
    assert torch.equal(posterior.kfacs()[1][0], factor)


def test_it_is_that_of_laplace_torch() -> None:
    laplace = pytest.importorskip("laplace", reason="laplace-torch is not installed")
    last, x, moment, factor = layer(bias=False)
    model = nn.Sequential(nn.Identity(), last)
    data = torch.utils.data.TensorDataset(x, torch.zeros(50, dtype=torch.long))
    theirs = laplace.Laplace(model, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    theirs.fit(torch.utils.data.DataLoader(data, batch_size=50))
    theirs.prior_precision = torch.tensor([0.7]).double()
    ours = LastLayerPosterior(moment, factor, 0.7)
    for own, other in zip(ours.kfacs()[0], theirs.H_facs.kfacs[0], strict=True):
        torch.testing.assert_close(own, other.double(), rtol=1e-5, atol=1e-7)
    _, variance = theirs._glm_predictive_distribution(x)
    torch.testing.assert_close(ours.variance(x), variance.diagonal(dim1=-2, dim2=-1).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"moment": torch.eye(6)}, TypeError, "moment must be a LayerMoment"),
        ({"factor": torch.eye(4)}, ValueError, r"factor of shape \(4, 4\) must be \[3, 3\]"),
        ({"factor": torch.full((3, 3), math.nan)}, ValueError, "factor holds NaN"),
        ({"prior": 0.0}, ValueError, "prior=0"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _, _, moment, factor = layer()
    with pytest.raises(error, match=message):
        LastLayerPosterior(**({"moment": moment, "factor": factor, "prior": 1.0} | change))


def test_rows_that_do_not_fit_are_named() -> None:
    _, x, moment, factor = layer()
    posterior = LastLayerPosterior(moment, factor, 1.0)
    with pytest.raises(ValueError, match=r"features of shape \(50, 5\) must be samples \[N, 6\]"):
        posterior.variance(x[:, :5])
    with pytest.raises(ValueError, match="logits of 2 samples do not go with features of 50"):
        posterior.probabilities(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="logits holds NaN"):
        output_factor(torch.full((2, 3), math.nan), 10)
    with pytest.raises(ValueError, match="total=0"):
        output_factor(torch.zeros(2, 3), 0)
    grouped = replace(moment.info, groups=2, size=3, d_out=3)
    parts = moment.second_moment[0, 0, :3, :3].expand(2, 1, 3, 3), moment.mean.view(2, 3), moment.count.expand(2)
    with pytest.raises(ValueError, match="has 2 groups"):
        LastLayerPosterior(LayerMoment(grouped, *parts), factor, 1.0)
