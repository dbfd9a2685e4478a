"""GPTQ against a textbook version that inverts the matrix anew for every column, and against what it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from moments_support import images, small_model
from torch import Tensor, nn

import lnb
from lnb.moments import LayerInfo, LayerMoment, MissingMoment, Moments, gptq, quantize, round_to_nearest


def correlated(rows: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(rows, d, generator=generator, dtype=torch.float64) @ mix + 0.2


def moment_of(x: Tensor, d_out: int, blocks: int = 1, groups: int = 1) -> LayerMoment:
    """Of rows ``[N, groups d]``, in blocks."""
    size = x.shape[1] // groups // blocks
    info = LayerInfo("a", "linear layer", "a.weight", None, groups, blocks, size, d_out, torch.float64, "data")
    parts = x.unflatten(1, (groups, blocks, size)).permute(1, 2, 0, 3)  # [groups, blocks, N, size]
    count = torch.full((groups,), len(x), dtype=torch.float64)
    return LayerMoment(info, parts.mT @ parts / len(x), parts.mean(2).flatten(1), count)


def textbook(weight: Tensor, square: Tensor, bits: int, damp: float, order: list[int]) -> Tensor:
    """Optimal Brain Surgeon, column after column, with the inverse of what is left made anew each time."""
    d = weight.shape[1]
    h = square + damp * square.diagonal().mean() * torch.eye(d, dtype=square.dtype)
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    w, q = weight.clone(), torch.zeros_like(weight)
    for position, i in enumerate(order):
        free = order[position:]
        inverse = torch.linalg.inv(h[free][:, free])
        q[:, i] = scale * ((w[:, i] / scale + zero).round().clamp(0, 2**bits - 1) - zero)
        error = (w[:, i] - q[:, i]) / inverse[0, 0]
        w[:, free] -= error.unsqueeze(1) * inverse[0]
    return q


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_the_textbook_one(act_order: bool) -> None:
    torch.manual_seed(0)
    d = 150  # more than one chunk of columns
    x, weight = correlated(400, d), torch.randn(5, d, dtype=torch.float64)
    moment = moment_of(x, 5)
    square = moment.second_moment[0, 0]
    order = square.diagonal().argsort(descending=True, stable=True).tolist() if act_order else list(range(d))
    found = gptq(weight, moment, 3, damp=0.02, act_order=act_order)
    torch.testing.assert_close(found.weight, textbook(weight, square, 3, 0.02, order), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
def test_blocks_are_the_block_diagonal_matrix(act_order: bool) -> None:
    """Exactly, for groups of inputs that lie across blocks too."""
    torch.manual_seed(1)
    x, weight = correlated(300, 24), torch.randn(4, 24, dtype=torch.float64)
    cut = moment_of(x, 4, blocks=3)
    whole = moment_of(x, 4)
    whole.second_moment[0, 0] = torch.block_diag(*cut.second_moment[0])
    a, b = (gptq(weight, moment, 3, group_size=12, act_order=act_order) for moment in (cut, whole))
    assert torch.equal(a.codes, b.codes)
    assert (a.blocks, b.blocks) == (3, 1)


def test_groups_and_kernels() -> None:
    """Each group of a convolution by its own inputs."""
    torch.manual_seed(2)
    x, kernel = correlated(200, 16), torch.randn(6, 2, 2, 2)  # 2 groups of 3 outputs and 8 inputs
    found = gptq(kernel, moment_of(x, 6, groups=2), 3)
    assert found.weight.shape == kernel.shape
    assert found.weight.dtype == torch.float32
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        alone = gptq(kernel[rows], moment_of(x[:, 8 * group : 8 * group + 8], 3), 3)
        assert torch.equal(found.codes[rows], alone.codes)


def test_orthogonal_inputs_leave_nothing_to_make_good() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    moment = moment_of(torch.eye(8, dtype=torch.float64), 4)
    assert torch.equal(gptq(weight, moment, 4).codes, round_to_nearest(weight, 4).codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_errors_are_what_they_say_and_smaller_than_by_rounding(bits: int) -> None:
    torch.manual_seed(4)
    x, weight = correlated(500, 48), torch.randn(16, 48, dtype=torch.float64)
    found = gptq(weight, moment_of(x, 16), bits)
    nearest = round_to_nearest(weight, bits)
    for result, error in ((found, found.error), (nearest, found.rounding_error)):
        direct = (((weight - result.weight) @ x.T) ** 2).sum() / len(x)
        torch.testing.assert_close(torch.tensor(error, dtype=torch.float64), direct)
    assert found.error < 0.7 * found.rounding_error


def test_codes_scales_and_zeros_give_the_weight() -> None:
    torch.manual_seed(5)
    weight = torch.randn(4, 12)
    weight[1] = 0
    weight[2].abs_()
    for found in (gptq(weight, moment_of(correlated(99, 12), 4), 2, group_size=4), round_to_nearest(weight, 2, 4)):
        codes = found.codes.double().unflatten(1, (-1, 4))
        rebuilt = (found.scale.unsqueeze(-1) * (codes - found.zero.unsqueeze(-1))).flatten(1)
        assert torch.equal(rebuilt.float(), found.weight)
        assert found.codes.max() <= 3
        assert not found.weight[1].any()
        assert (found.weight[2] >= 0).all()


def test_inputs_that_are_always_zero_are_rounded() -> None:
    x, weight = correlated(100, 8), torch.randn(3, 8, dtype=torch.float64)
    x[:, [2, 5]] = 0
    found, nearest = gptq(weight, moment_of(x, 3), 3, damp=0.0), round_to_nearest(weight, 3)
    assert torch.equal(found.codes[:, [2, 5]], nearest.codes[:, [2, 5]])


def test_a_model_is_quantised_whole_or_not_at_all() -> None:
    model = small_model()
    moments = lnb.gather_moments(model, [images(64, 0)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    some = lnb.gather_moments(model, [images(64, 0)], layers=["0", "5"])
    with pytest.raises(MissingMoment, match=r"layers \['3'\] of the model have none"):
        quantize(model, some, 3)
    with pytest.raises(ValueError, match=r"no parameter '3.weight'"):
        quantize(nn.Sequential(nn.Linear(18, 4)), moments, 3, layers=["3"])
    with pytest.raises(ValueError, match="for 8 outputs of 64 inputs each; it was taken of another model"):
        quantize(nn.Sequential(*[nn.Identity()] * 3, nn.Linear(63, 8)), moments, 3, layers=["3"])
    with pytest.raises(ValueError, match="group_size=5 must divide"):
        quantize(model, moments, 3, group_size=5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = quantize(model, moments, 3)
    assert found.keys() == {"0", "3", "5"}
    assert torch.equal(model[3].weight, found["3"].weight)
    assert model[3].weight.unique(dim=1).shape[1] <= 64
    assert torch.equal(model[5].bias, before["5.bias"])
    quantize(model, some, 2, layers=["5"], method="nearest")
    assert all(len(row.unique()) <= 4 for row in model[5].weight.detach())


def test_hessians() -> None:
    x = correlated(50, 6)
    moments = Moments([moment_of(x, 3)])
    torch.testing.assert_close(moments.to_gptq_hessian("a"), 2 * x.T @ x / 50)
    cut = Moments([moment_of(x, 3, blocks=2)])
    with pytest.raises(ValueError, match=r"2 diagonal blocks of 3 inputs.*block_size=None.*allow_blocks=True"):
        cut.to_gptq_hessian("a")
    hessian = cut.to_gptq_hessian("a", allow_blocks=True)
    torch.testing.assert_close(hessian[:3, :3], 2 * x.T[:3] @ x[:, :3] / 50)
    assert not hessian[:3, 3:].any()
    assert Moments([moment_of(x, 4, groups=2)]).to_gptq_hessian("a").shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bits": 0}, ValueError, "bits=0"),
        ({"bits": 9}, ValueError, "bits=9 must be at most 8"),
        ({"bits": 2.0}, TypeError, "bits=2.0"),
        ({"group_size": 5}, ValueError, "group_size=5 must divide the 6 inputs"),
        ({"damp": -1.0}, ValueError, "damp=-1.0"),
        ({"damp": 0.0}, ValueError, "layer 'a': its second moment is not positive definite with damp=0.0; raise damp"),
        ({"weight": torch.ones(3, 5)}, ValueError, r"\(3, 5\): the moment of layer 'a' is for 3 outputs of 6 inputs"),
        ({"weight": torch.full((3, 6), float("nan"))}, ValueError, "holds NaN or inf"),
        ({"weight": torch.ones(3, 6, dtype=torch.int8)}, TypeError, "weight must be a real floating-point tensor"),
        ({"moment": torch.eye(6)}, TypeError, "moment must be a LayerMoment"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"weight": torch.randn(3, 6), "moment": moment_of(correlated(3, 6), 3), "bits": 3} | change
    with pytest.raises(error, match=message):
        gptq(**arguments)
