"""RegMean, CorDA and the drift monitor: each is what its formula says, and does what it is for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from moments_support import images, small_model
from torch import Tensor, nn

import lnb
from lnb.moments import DriftMonitor, MissingMoment, corda, mahalanobis, regmean


def linear(seed: int, d: int = 6, out: int = 3) -> tuple[nn.Sequential, Tensor, lnb.moments.Moments]:
    """A layer, rows, and their moments."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(d, out).double())
    x = torch.randn(80, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64) + torch.randn(d).double()
    return model, x, lnb.gather_moments(model, [x])


@pytest.mark.parametrize("bias", [False, True])
def test_regmean_is_least_squares(bias: bool) -> None:
    """On the rows themselves, by ``torch.linalg.lstsq``."""
    parts = [linear(seed) for seed in (1, 2)]
    merged = regmean([m for m, _, _ in parts], [s for _, _, s in parts], shrink=1.0, bias=bias)
    rows = torch.cat([torch.cat([x, torch.ones(80, 1)], 1) if bias else x for _, x, _ in parts])
    outputs = [x @ m[0].weight.T + (m[0].bias if bias else 0) for m, x, _ in parts]
    solution = torch.linalg.lstsq(rows, torch.cat(outputs).detach()).solution.T
    torch.testing.assert_close(merged["0.weight"], solution[:, :6], rtol=1e-5, atol=1e-6)
    average = (parts[0][0][0].bias + parts[1][0][0].bias).detach() / 2
    torch.testing.assert_close(merged["0.bias"], solution[:, 6] if bias else average, rtol=1e-5, atol=1e-5)


def test_regmean_of_white_inputs_is_the_average_and_of_one_model_itself() -> None:
    a, _, moments = linear(1)
    b, _, _ = linear(2)
    merged = regmean([a, b], [moments, moments], weights=[3.0, 1.0])
    torch.testing.assert_close(merged["0.weight"], (0.75 * a[0].weight + 0.25 * b[0].weight).detach())
    same = regmean([a, copy.deepcopy(a)], [moments, lnb.gather_moments(a, [torch.randn(50, 6).double()])], bias=True)
    torch.testing.assert_close(same, dict(a.state_dict()))


def test_regmean_takes_whole_models() -> None:
    """Convolutions, blocks, buffers and integers; inputs that are always zero get the average."""
    models = [nn.Sequential(*small_model(seed), nn.BatchNorm1d(3)) for seed in (1, 2)]
    data = images(50, 0)
    data[:, 0] = 0
    moments = [lnb.gather_moments(model, [data], block_size=9) for model in models]
    merged = regmean(models, moments)
    models[0].load_state_dict(merged)
    assert merged["6.num_batches_tracked"].dtype == torch.int64
    average = small_model(1)[0].weight[:, 0] + small_model(2)[0].weight[:, 0]
    torch.testing.assert_close(merged["0.weight"][:, 0], (average / 2).detach())


def test_a_shared_layer_is_merged_under_all_its_names() -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layer = nn.Linear(4, 4)
        models.append(nn.Sequential(layer, layer))
    moments = [lnb.gather_moments(model, [torch.randn(30, 4)]) for model in models]
    merged = regmean(models, moments, bias=True)
    assert torch.equal(merged["1.weight"], merged["0.weight"])
    assert torch.equal(merged["1.bias"], merged["0.bias"])
    average = (models[0][0].weight + models[1][0].weight).detach() / 2
    assert not torch.allclose(merged["0.weight"], average, atol=1e-2)


def test_what_cannot_be_merged_is_named() -> None:
    a, x, moments = linear(1)
    b, _, other = linear(2)
    cut = lnb.gather_moments(a, [x], block_size=3)
    cases: list[tuple[Any, type[Exception], str]] = [
        (([a], [moments]), ValueError, "two or more"),
        (([a, b], [moments]), ValueError, "each model needs its own"),
        (([a, linear(1, 7)[0]], [moments, other]), ValueError, r"models\[1\] differs .*'0.weight'"),
        (([a, b], [moments, cut]), ValueError, "different blocks"),
        (([a, b], [moments, small_moments()]), MissingMoment, "of some models only"),
        (([linear(1, 7)[0]] * 2, [moments, other]), ValueError, "taken of another model"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            regmean(*arguments)
    with pytest.raises(ValueError, match=r"bias=True: layer '0' has its second moment in 2 diagonal blocks.*averaged"):
        regmean([a, b], [cut, cut], bias=True)
    with pytest.raises(ValueError, match=r"shrink=1.5"):
        regmean([a, b], [moments, other], shrink=1.5)
    with pytest.raises(ValueError, match="weights"):
        regmean([a, b], [moments, other], weights=[1.0, 0.0])


def small_moments() -> lnb.moments.Moments:
    return lnb.gather_moments(small_model(), [images(4, 0)])


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_splits_the_weight(method: str, block_size: int | None) -> None:
    """The adapter is the part of ``W`` that the largest (smallest) singular values of ``W S`` make."""
    model, x, _ = linear(3, 6, 5)
    moment = lnb.gather_moments(model, [x], block_size=block_size)["0"]
    weight = model[0].weight.detach()
    a, b, residual = corda(weight, moment, 2, method=method, damp=1e-9)
    assert (a.shape, b.shape) == ((2, 6), (5, 2))
    torch.testing.assert_close(b @ a + residual, weight)
    square = torch.block_diag(*moment.second_moment[0])
    square /= square.diagonal().mean()
    left, values, right = torch.linalg.svd(weight @ square, full_matrices=False)
    kept = slice(0, 2) if method == "ipm" else slice(3, 5)
    torch.testing.assert_close(b @ a @ square, left[:, kept] * values[kept] @ right[kept], rtol=1e-5, atol=1e-5)


def test_corda_fits_the_layout_of_lora() -> None:
    """``lora_A``, ``lora_B`` and the base layer as ``nn.Linear`` modules give the layer's output."""
    model, x, moments = linear(4)
    a, b, residual = corda(model[0].weight, moments["0"], 3)
    base, down, up = (nn.Linear(n, m, bias=False).double() for n, m in ((6, 3), (6, 3), (3, 3)))
    for layer, value in ((base, residual), (down, a), (up, b)):
        assert layer.weight.shape == value.shape
        layer.weight.data.copy_(value)
    torch.testing.assert_close(base(x) + up(down(x)) + model[0].bias, model(x))


def test_what_corda_cannot_do_is_named() -> None:
    model, _, moments = linear(4)
    weight, moment = model[0].weight, moments["0"]
    with pytest.raises(ValueError, match="rank=4 must be at most 3"):
        corda(weight, moment, 4)
    with pytest.raises(ValueError, match="method='x'"):
        corda(weight, moment, 2, method="x")
    with pytest.raises(ValueError, match="damp=0"):
        corda(weight, moment, 2, damp=0)
    grouped = nn.Conv2d(4, 4, 1, groups=2)
    with pytest.raises(ValueError, match="has 2 groups"):
        corda(grouped.weight, lnb.gather_moments(grouped, [torch.randn(3, 4, 2, 2)])["Conv2d"], 1)


def test_mahalanobis_is_its_definition() -> None:
    _, x, moments = linear(5)
    found = mahalanobis(x.view(8, 10, 6), moments["0"], ridge=1e-9)
    centred = x - x.mean(0)
    inverse = torch.linalg.inv(torch.cov(x.T, correction=0))
    torch.testing.assert_close(found.flatten(), ((centred @ inverse) * centred).sum(1) / 6, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean(), torch.ones((), dtype=torch.float64), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"must be inputs \[..., 6\]"):
        mahalanobis(x[:, :5], moments["0"])
    with pytest.raises(ValueError, match="ridge=0"):
        mahalanobis(x, moments["0"], ridge=0)


@pytest.mark.parametrize("block_size", [None, 4])
def test_the_monitor_scores_every_sample(block_size: int | None) -> None:
    model, x = small_model(), images(200, 0)
    moments = lnb.gather_moments(model, [x], block_size=block_size)
    with DriftMonitor(model, moments, ridge=1e-6) as monitor:
        model(x[:150])
        model(x[150:])
    scores = monitor.scores()
    assert {name: tuple(score.shape) for name, score in scores.items()} == dict.fromkeys(("0", "3", "5"), (200,))
    for score in scores.values():
        assert 0.99 < score.mean() < 1.01  # by definition, but for the ridge
    own = mahalanobis(model[:3](x), moments["3"], ridge=1e-6)
    torch.testing.assert_close(scores["3"], own.detach())
    torch.testing.assert_close(monitor.score(), torch.stack(list(scores.values())).mean(0))
    model(x)  # outside: not seen
    assert len(monitor.score()) == 200
    monitor.reset()
    with monitor:
        model(3 * x)
    assert (monitor.score() > 2).all()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_dimensional_convolutions_are_watched() -> None:
    model, x = nn.Sequential(nn.Conv1d(3, 2, 3)), torch.randn(20, 3, 9)
    with DriftMonitor(model, lnb.gather_moments(model, [x])) as monitor:
        model(x)
        model(x[0])
    assert monitor.score().shape == (21,)
    torch.testing.assert_close(monitor.score()[20], monitor.score()[0])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_an_error_of_every_use(wrong: float) -> None:
    """Of moments in memory: those of files are checked when they are read. Nothing falls back to a worse method."""
    model, x, moments = linear(6)
    other = linear(7)[0]
    moments["0"].second_moment[0, 0, 1, 2] = wrong
    before, moment, weight = copy.deepcopy(model.state_dict()), moments["0"], model[0].weight
    uses: dict[str, Callable[[], object]] = {
        "gptq": lambda: lnb.moments.gptq(weight, moment, 3),
        "quantize": lambda: lnb.moments.quantize(model, moments, 3),
        "hessian": lambda: moments.to_gptq_hessian("0"),
        "regmean": lambda: regmean([model, other], [moments, moments]),
        "corda": lambda: corda(weight, moment, 2),
        "mahalanobis": lambda: mahalanobis(x, moment),
        "monitor": lambda: DriftMonitor(model, moments),
        "laplace": lambda: lnb.moments.LastLayerPosterior(moment, torch.eye(3), 1.0),
    }
    for name, use in uses.items():
        with pytest.raises(ValueError, match=r"layer '0': second_moment holds NaN or inf; gather or export it anew"):
            print(name, use())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_watched_is_named() -> None:
    model, moments = small_model(), small_moments()
    with pytest.raises(MissingMoment, match="'nope' has no moment"):
        DriftMonitor(model, moments, layers=["nope"])
    with pytest.raises(ValueError, match=r"no parameter '0.weight'"):
        DriftMonitor(nn.Linear(3, 2), moments)
    with pytest.raises(ValueError, match="run the model within"):
        DriftMonitor(model, moments).score()
    attention = nn.MultiheadAttention(4, 1)
    x = torch.randn(3, 2, 4)
    inside = lnb.gather_moments(attention, [x], forward=lambda m, x: m(x, x, x))
    with pytest.raises(ValueError, match="no layer that has a moment and can be watched"):
        DriftMonitor(attention, inside)
