"""``lnb.LNB(preset="paper")`` against the dense reference of the paper's algorithm, over 20 steps of fresh batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from optimizer.paper_reference import PaperReference
from torch import Tensor, nn

import lnb

STEPS = 20
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
Batch = tuple[Tensor, Tensor]


class Shared(nn.Module):
    """A hidden layer used twice in each forward pass: the rows of both uses belong to its metric."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(torch.tanh(self.hidden(torch.tanh(self.first(x)))))))


class SharedConv(nn.Module):
    """A grouped convolution used at two resolutions, so that its uses have different numbers of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.AvgPool2d(2), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(self.pool(torch.tanh(self.conv(x))))).flatten(1))


def mlp(bias: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9, bias=bias), nn.Tanh(), nn.Linear(9, 5, bias=bias), nn.GELU(), nn.Linear(5, 2))


def cnn(first: nn.Module, second: nn.Module) -> nn.Module:
    """Two convolutions from 4 to 6 to 4 channels with a linear head on means over quarters of the image."""
    return nn.Sequential(first, nn.Tanh(), second, nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def language_model() -> nn.Module:
    """Embedding and norms beside linear layers, on inputs ``[batch, position, feature]``."""
    return nn.Sequential(
        nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2, bias=False)
    )


def plain_conv(bias: bool) -> nn.Module:
    return cnn(nn.Conv2d(4, 6, 3, bias=bias), nn.Conv2d(6, 4, 2, bias=bias))


def strided_conv() -> nn.Module:
    return cnn(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 4, (3, 2), stride=(1, 2), padding=(2, 1)))


def dilated_conv() -> nn.Module:
    return cnn(nn.Conv2d(4, 6, 3, dilation=2, padding=2), nn.Conv2d(6, 4, 2, dilation=(2, 1), padding="valid"))


def same_conv() -> nn.Module:
    return cnn(nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(6, 4, (4, 3), padding="same", dilation=(1, 2)))


def padded_conv(mode: str) -> nn.Module:
    return cnn(
        nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode=mode),
        nn.Conv2d(6, 4, (3, 2), padding="same", dilation=(1, 2), padding_mode=mode),
    )


def even_padded_conv(mode: str) -> nn.Module:
    """Even kernels, whose ``"same"`` padding is larger behind, without a bias and in groups."""
    return cnn(
        nn.Conv2d(4, 6, (4, 2), padding="same", bias=False, padding_mode=mode),
        nn.Conv2d(6, 4, 2, padding=1, stride=2, groups=2, padding_mode=mode),
    )


class SharedPaddedConv(nn.Module):
    """One convolution at two resolutions, whose rows its padding does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"), nn.AvgPool2d(2)
        self.head = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(self.pool(torch.tanh(self.conv(x))))).flatten(1))


def grouped_conv(bias: bool) -> nn.Module:
    return cnn(
        nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=bias), nn.Conv2d(6, 4, 3, stride=2, groups=2, bias=bias)
    )


def depthwise_conv() -> nn.Module:
    return cnn(nn.Conv2d(4, 6, 1), nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)))


# name: (model, shape of the input; the embedding's input is drawn as integers)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(True), (40, 7)),
    "mlp-no-bias": (lambda: mlp(False), (40, 7)),
    "mlp-3d": (lambda: mlp(True), (8, 5, 7)),
    "mlp-4d-few-rows": (lambda: mlp(True), (1, 2, 2, 7)),
    "language-model": (language_model, (8, 6)),
    "shared-linear": (Shared, (20, 5)),
    "shared-conv": (SharedConv, (8, 4, 6, 6)),
    "conv": (lambda: plain_conv(True), (6, 4, 7, 6)),
    "conv-no-bias": (lambda: plain_conv(False), (6, 4, 7, 6)),
    "conv-stride": (strided_conv, (6, 4, 9, 8)),
    "conv-dilation": (dilated_conv, (6, 4, 8, 9)),
    "conv-same": (same_conv, (6, 4, 7, 6)),
    "conv-circular": (lambda: padded_conv("circular"), (6, 4, 7, 6)),
    "conv-reflect": (lambda: padded_conv("reflect"), (6, 4, 7, 6)),
    "conv-replicate": (lambda: padded_conv("replicate"), (6, 4, 7, 6)),
    **{
        f"conv-{mode}-even": (lambda mode=mode: even_padded_conv(mode), (6, 4, 7, 6))
        for mode in ("circular", "reflect", "replicate")
    },
    "shared-conv-reflect": (SharedPaddedConv, (8, 4, 6, 6)),
    "conv-groups": (lambda: grouped_conv(True), (6, 4, 8, 7)),
    "conv-groups-no-bias": (lambda: grouped_conv(False), (6, 4, 8, 7)),
    "conv-depthwise": (depthwise_conv, (6, 4, 6, 5)),
}


def make(case: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The case's model, with weights of unit gain.

    Signals then keep their spread. PyTorch's own initial weights shrink it, the mean swamps ``nu - mu^2``, and float32
    has too few digits left for 1e-4, whatever the implementation.
    """
    torch.manual_seed(1)
    model = CASES[case][0]()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.to(dtype)


def batches(case: str, steps: int = STEPS) -> Iterator[Batch]:
    """Fresh batches in float32 precision, so that every dtype sees the same numbers: features off centre, scaled."""
    generator = torch.Generator().manual_seed(2)
    shape = CASES[case][1]
    for _ in range(steps):
        if case == "language-model":
            x = torch.randint(11, shape, generator=generator)
            yield x, torch.randn(*shape, 2, generator=generator)
            continue
        x = torch.randn(shape, generator=generator)
        feature = -3 if len(shape) == 4 and "mlp" not in case else -1
        scale = torch.linspace(0.3, 2.0, shape[feature])
        x = (x.movedim(feature, -1) * scale + 0.7).movedim(-1, feature)
        leading = shape[:-1] if feature == -1 else shape[:1]
        yield x, torch.randn(*leading, 2, generator=generator)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def mean_loss(model: nn.Module, batch: Batch, scale: float = 1.0) -> Tensor:
    dtype = next(model.parameters()).dtype
    x, y = batch
    return scale * (model(cast(x, dtype)) - y.to(dtype)).square().mean()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *micro_batches: Batch) -> None:
    optimizer.zero_grad()
    for batch in micro_batches:
        mean_loss(model, batch, 1 / len(micro_batches)).backward()
    optimizer.step()


def relative_error(model: nn.Module, reference: nn.Module) -> float:
    """The largest relative error of a parameter (its norm, not its elements), NaN where anything is NaN."""
    errors = [
        (a.detach().double() - b.detach().double()).norm() / b.detach().double().norm()
        for a, b in zip(model.parameters(), reference.parameters(), strict=True)
    ]
    return torch.stack(errors).max().item()


SOLVERS = ("pcg", "arrow", "matrix_free")


def cases_of_solvers() -> list[tuple[str, str, torch.dtype]]:
    """Every case in float64, with one solver in float32 too. That matrix_free is pcg in float64 is a test of its own."""
    double = [(case, solver, torch.float64) for case in CASES for solver in SOLVERS[:2]]
    return double + [(case, SOLVERS[i % 3], torch.float32) for i, case in enumerate(CASES)]


@pytest.mark.parametrize(("case", "solver", "dtype"), cases_of_solvers(), ids=str)
def test_agrees_with_the_reference(case: str, solver: str, dtype: torch.dtype) -> None:
    model = make(case, dtype)
    truth = copy.deepcopy(model).double()
    start = copy.deepcopy(truth)
    reference = PaperReference(truth, lr=0.05, solver="arrow" if solver == "arrow" else "pcg")
    optimizer = lnb.LNB(model, lr=0.05, preset="paper", solver=solver)
    for batch in batches(case):
        step(model, optimizer, batch)
        reference.step(lambda batch=batch: mean_loss(truth, batch))
    assert relative_error(start, truth) > 1e-2  # it moved, by far more than the tolerance
    assert relative_error(model, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0, "b_mu": 0.5, "b_nu": 0.8},
        {"shrinkage": 0.0, "ridge": 1.0, "cg_iterations": 1},
        {"shrinkage": 0.5, "ridge": 0.01, "cg_iterations": 4},
        {"min_norm": 5.0, "weight_decay": 0.1},
        {"cg_iterations": 40},  # every layer stops early
    ],
    ids=["averages", "one-iteration", "four-iterations", "min-norm", "early-stop"],
)
@pytest.mark.parametrize("solver", ["pcg", "matrix_free"])
@pytest.mark.parametrize("case", ["mlp", "conv-groups"])
def test_agrees_with_the_reference_for_other_settings(case: str, solver: str, options: dict[str, float]) -> None:
    model = make(case)
    truth = copy.deepcopy(model)
    reference = PaperReference(truth, lr=0.03, **options)
    optimizer = lnb.LNB(model, lr=0.03, preset="paper", solver=solver, **options)
    for batch in batches(case):
        step(model, optimizer, batch)
        reference.step(lambda batch=batch: mean_loss(truth, batch))
    assert relative_error(model, truth) < 1e-9


def test_float32_averages_weigh_the_first_batch_exactly() -> None:
    """Off-centre features cancel most digits of ``nu - mu^2``.

    ``1 - b_nu`` taken in float32 is wrong by 1.3e-5 of itself: 37 times that in the variance here.
    """
    model = nn.Linear(6, 3)
    truth = copy.deepcopy(model).double()
    batch = 3 + 0.5 * torch.randn(200, 6), torch.randn(200, 3)
    step(model, lnb.LNB(model, lr=1.0, preset="paper", solver="arrow"), batch)
    PaperReference(truth, lr=1.0, solver="arrow").step(lambda: mean_loss(truth, batch))
    assert relative_error(model, truth) < 2e-5


@pytest.mark.parametrize("case", CASES)
def test_matrix_free_is_the_same_step_as_second_moments(case: str) -> None:
    models = make(case), make(case)
    optimizers = [
        lnb.LNB(model, lr=0.05, preset="paper", solver=solver)
        for model, solver in zip(models, ("matrix_free", "pcg"), strict=True)
    ]
    for batch in batches(case):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, batch)
        assert relative_error(*models) < 1e-8


@pytest.mark.parametrize("solver", ["pcg", "matrix_free", "arrow"])
@pytest.mark.parametrize("case", ["mlp", "mlp-3d", "language-model", "shared-linear", "conv-stride", "conv-groups"])
def test_micro_batches_accumulate_to_one_batch(case: str, solver: str) -> None:
    accumulated, whole = make(case), make(case)
    optimizers = [lnb.LNB(model, lr=0.05, preset="paper", solver=solver) for model in (accumulated, whole)]
    for x, y in batches(case, steps=8):
        step(accumulated, optimizers[0], *zip(x.chunk(2), y.chunk(2), strict=True))
        step(whole, optimizers[1], (x, y))
    assert relative_error(accumulated, whole) < 1e-9


@pytest.mark.parametrize("solver", ["pcg", "matrix_free"])
def test_unequal_micro_batches_agree_with_the_reference(solver: str) -> None:
    """Rows are pooled: a micro-batch of one sample weighs as one sample in every moment, whatever its loss weighs."""
    model = make("conv-stride")
    truth = copy.deepcopy(model)
    reference = PaperReference(truth, lr=0.05)
    optimizer = lnb.LNB(model, lr=0.05, preset="paper", solver=solver)
    for x, y in batches("conv-stride", steps=8):
        parts = (x[:1], y[:1]), (x[1:], y[1:])
        step(model, optimizer, *parts)
        reference.step(*(lambda part=part: mean_loss(truth, part, 0.5) for part in parts))
    assert relative_error(model, truth) < 1e-9


@pytest.mark.parametrize("solver", ["pcg", "matrix_free"])
def test_negative_inner_product_takes_a_bounded_step(solver: str) -> None:
    """A turned gradient and one iteration from the old direction give ``<h, g~> < 0``: then ``z`` is ``min_norm``."""
    model = nn.Sequential(nn.Linear(6, 3, dtype=torch.float64))
    truth = copy.deepcopy(model)
    options = {"momentum": 0.0, "cg_iterations": 1, "ridge": 0.01, "weight_decay": 0.0}
    reference = PaperReference(truth, lr=1e-4, **options)
    optimizer = lnb.LNB(model, lr=1e-4, preset="paper", solver=solver, **options)
    # Strongly correlated features: the preconditioner misses them, one iteration cannot undo the old direction.
    x = torch.randn(50, 1, dtype=torch.float64) + 0.1 * torch.randn(50, 6, dtype=torch.float64)
    target = torch.randn(50, 3, dtype=torch.float64)
    inner = []
    for scale in (1.0, 1.0, -0.05, -0.05):
        optimizer.zero_grad()
        (scale * (model(x) * target).mean()).backward()
        optimizer.step()
        reference.step(lambda scale=scale: scale * (truth(x) * target).mean())
        inner.append(reference.inner)
    assert inner[2] < 0
    assert all(p.isfinite().all() for p in model.parameters())
    assert relative_error(model, truth) < 1e-9


@pytest.mark.parametrize("solver", ["pcg", "matrix_free", "arrow"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_first_step_on_whitened_inputs_is_normalised_gradient_descent(bias: bool, solver: str) -> None:
    layer = nn.Linear(5, 4, bias=bias, dtype=torch.float64)
    start = [p.detach().clone() for p in layer.parameters()]
    x = torch.randn(60, 5, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * 60**0.5  # mean 0, X'X/N = I
    optimizer = lnb.LNB(layer, lr=0.1, preset="paper", solver=solver, ridge=0.0, weight_decay=0.0)
    layer(x).square().mean().backward()
    grads = [p.grad.clone() for p in layer.parameters()]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    optimizer.step()
    for p, before, g in zip(layer.parameters(), start, grads, strict=True):
        torch.testing.assert_close(p.detach(), before - 0.1 * g / norm, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("solver", ["pcg", "matrix_free"])
def test_solved_metric_does_not_see_inverted_inputs(solver: str) -> None:
    """With no ridge and a solved system, training on ``1 - x`` from the same function stays the same function."""
    plain = nn.Linear(5, 4, dtype=torch.float64)
    inverted = copy.deepcopy(plain)
    with torch.no_grad():
        inverted.weight.neg_()
        inverted.bias.add_(plain.weight.sum(1))
    options = {"ridge": 0.0, "weight_decay": 0.0, "cg_iterations": 12, "momentum": 0.0}
    optimizers = [lnb.LNB(m, lr=0.1, preset="paper", solver=solver, **options) for m in (plain, inverted)]
    for _ in range(5):
        x, y = torch.rand(50, 5, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
        step(plain, optimizers[0], (x, y))
        step(inverted, optimizers[1], (1 - x, y))
    x = torch.rand(10, 5, dtype=torch.float64)
    torch.testing.assert_close(inverted(1 - x), plain(x), rtol=1e-4, atol=1e-4)  # the solve stops at 1e-5


@pytest.mark.parametrize("padding", [(1, 2), "same"], ids=str)
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate", "zeros"])
def test_channel_averages_count_repeated_pixels_and_no_zeros(mode: str, padding: tuple[int, int] | str) -> None:
    conv = nn.Conv2d(2, 3, (3, 4), padding=padding, padding_mode=mode, dtype=torch.float64)
    x = torch.randn(5, 2, 6, 7, dtype=torch.float64) + 1
    optimizer = lnb.LNB(conv, preset="paper", b_mu=0.0, b_nu=0.0)
    conv(x).square().mean().backward()
    optimizer.step()
    before, after = ((1, 1), (1, 2)) if padding == "same" else ((1, 2), (1, 2))
    rows, columns = torch.arange(-before[0], 6 + after[0]), torch.arange(-before[1], 7 + after[1])
    if mode == "reflect":
        rows, columns = 5 - (5 - rows.abs()).abs(), 6 - (6 - columns.abs()).abs()
    elif mode == "circular":
        rows, columns = rows % 6, columns % 7
    elif mode == "replicate":
        rows, columns = rows.clamp(0, 5), columns.clamp(0, 6)
    else:
        rows, columns = rows[(rows >= 0) & (rows < 6)], columns[(columns >= 0) & (columns < 7)]
    seen = x[:, :, rows][:, :, :, columns].movedim(1, -1).reshape(-1, 2)
    state = optimizer.state[conv.weight]
    torch.testing.assert_close(state["mean"].view(2, 12), seen.mean(0)[:, None].expand(2, 12))
    torch.testing.assert_close(state["mean_square"].view(2, 12), seen.square().mean(0)[:, None].expand(2, 12))


def test_a_layers_matrix_splits_into_contiguous_tensors() -> None:
    """Views with gaps would be taken by the reference of the update, tensor by tensor."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.LazyLinear(3))
    model(torch.randn(1, 4, 5, 5))
    optimizer = lnb.LNB(model, 0.1, "paper")
    for block in optimizer._inventory.layers:
        groups, rows, d_in = block.shape
        matrix = torch.randn(groups, rows, d_in + 1)
        parts = block.split(matrix)
        assert all(part.is_contiguous() for part in parts)
        assert torch.equal(block.join(parts), matrix)
