"""The CUDA kernel of :func:`lnb_kernels.fused_step.finish_layers_`, simulated on the CPU, and the chain of both."""

from __future__ import annotations

import pytest
import torch
from cusim.fused_layers import DECAY, SETTINGS, Layers, Shape
from cusim.simulated import ORDERS, SANITIZED, Simulator
from support import relative_errors
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels.step_tables import StepFactor, StepLayer, StepTables

SHAPES = [Shape(1, 1, 1, 1), Shape(700, 6, 7, 3), Shape(4, 6, 2, 2, groups=3, bias=False)]


def random(shapes: list[Shape] = SHAPES, gradient_dtype: torch.dtype = torch.float32) -> Layers:
    """Layers with sums as a direction has them, though of none. Some rows have no positive product."""
    layers = Layers.random(shapes, 1.0, gradient_dtype)
    layers.mixed_biases.normal_()
    layers.partials.view(-1, 6).copy_(torch.rand(len(layers.partials) // 6, 6))
    layers.partials.view(-1, 6)[::5, 0] -= 1.5
    layers.partials.view(-1, 6)[:, 2:4].normal_()
    layers.partials.view(-1, 6)[:, 4] *= 80
    # Measured, with and without a norm before, and not measured.
    layers.norms = torch.tensor([1.5, -1.0, 0.0, 2.0, -1.0] * len(shapes), dtype=torch.float64)[: len(shapes)]
    layers.numbers["weight_norm"][3::4] = 0
    return layers


def assert_finished(layers: Layers, truth: Layers) -> None:
    for name, found in layers.numbers.items():
        narrow = found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), truth.numbers[name].double(), rtol=3e-7 if narrow else 1e-6, atol=1e-7
        )
    pairs = zip(
        (*layers.bias_momentum, *layers.bias_directions), (*truth.bias_momentum, *truth.bias_directions), strict=True
    )
    for own, right in pairs:
        if own is not None and right is not None:
            torch.testing.assert_close(own.double(), right.double(), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_that_is_written(simulated: Simulator, gradient_dtype: torch.dtype) -> None:
    layers = random(gradient_dtype=gradient_dtype)
    layers.partials[0] = float("inf")  # a layer that must stand still
    rates: list[float | Tensor] = [0.125, torch.tensor(3.0), torch.tensor(1e-3, dtype=torch.float64)]
    truth = layers.copy(torch.float64)
    truth.numbers["row_scales"] = truth.numbers["row_scales"].float()
    truth.steps = truth.steps.float()
    lk.set_backend("reference")
    truth.finish(rates)
    lk.set_backend("native")
    simulated.set()
    layers.finish(rates)
    assert simulated.launches == ["fused_step.finish"]
    assert_finished(layers, truth)
    assert layers.numbers["row_scales"].eq(0).any()
    assert layers.numbers["row_scales"].gt(0).any()


def test_opposed_gradients_shrink_the_radius_and_others_grow_it(simulated: Simulator) -> None:
    layers = random([Shape(6, 4, 2, 2), Shape(6, 4, 2, 2)])
    layers.steps.fill_(2)  # of the opening
    layers.numbers["radius"].fill_(0.5)
    half = len(layers.partials) // 2
    layers.partials.view(-1, 6)[: half // 6, 4] = 1e-12
    for bias in (layers.bias_momentum[0], layers.bias_gradients[0]):
        assert bias is not None
        bias.fill_(1e-9)
    layers.finish()
    assert layers.numbers["radius"].tolist() == [0.5 * 0.9, 0.5 * 1.02]


def test_a_product_that_is_not_finite_is_no_step(simulated: Simulator) -> None:
    layers = random([Shape(6, 4, 2, 2)])
    layers.partials.view(-1, 6)[3, 3] = float("nan")
    before = layers.copy()
    layers.finish()
    assert layers.numbers["products"].isnan().all()
    assert layers.numbers["scales"].eq(0).all()
    assert torch.equal(layers.numbers["growth"], before.numbers["growth"])


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_bits_in_every_order(simulated: Simulator, order: str) -> None:
    layers = random()
    expected = layers.copy()
    expected.finish()
    simulated.set(order, seed=3)
    layers.finish()
    assert all(torch.equal(*pair) for pair in zip(layers.tensors(), expected.tensors(), strict=True))


def test_a_verdict_that_is_not_ok_writes_nothing(simulated: Simulator) -> None:
    layers = random()
    before = layers.copy()
    layers.finish(ok=torch.tensor(False))
    assert simulated.launches == ["fused_step.finish"]
    assert all(torch.equal(*pair) for pair in zip(layers.tensors(), before.tensors(), strict=True))


def test_a_launch_that_fails_is_an_exception_with_the_kernel_in_it(simulated: Simulator) -> None:
    layers = random()
    for name, call in {"direct": layers.direct, "finish": layers.finish}.items():
        simulated.set(fail_launch=0)
        with pytest.raises(RuntimeError, match=rf"fused_step\.{name} failed: simulated failure"):
            call()


def test_traffic(simulated: Simulator) -> None:
    """Sums and the squares of rows once; nothing of the size of the weights."""
    layers = random([Shape(700, 6, 7, 3)])
    layers.norms = None
    simulated.set()
    layers.finish()
    rows, threads = 700, 512
    everywhere = threads * (4 + 8 + 8)  # the count of steps, the bias's share and the inputs' size, by each thread
    assert simulated.traffic == (
        rows * (2 * 48 + 8 + 8 + 4 + 4) + everywhere + 5 * 8,
        rows * (8 + 4 + 4 + 4) + 7 * 8 + 4 * 8,
    )


def test_what_would_crash_is_refused_before_any_launch(simulated: Simulator) -> None:
    native, where = simulated.module, (0, 0)
    layers = random([Shape(2, 4, 2, 4)])
    kind = native.Type.FLOAT32
    simulated.set()

    def address(*tensors: Tensor | None) -> list[int]:
        return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]

    direct = [
        *address(
            layers.gradients[0], layers.momentum[0], layers.directions[0], layers.bias_gradients[0],
            layers.bias_momentum[0], layers.inverses[0], layers.means[0], layers.roots[0],
        ), 0, 0, 1, 2, 4, 4, 2, 0,
    ]  # fmt: skip
    [partials, mixed, shares] = address(layers.partials, layers.mixed_biases, layers.shares)

    def call_direct(fields: list[int], sums: int = partials, count: int = 12, share: int = shares) -> None:
        native.fused_direct(
            [fields], kind, kind, native.Precision.TF32, sums, count, mixed, 2, (share, share), 1, 0.5, 0.5, 0, where
        )

    def changed(place: int, value: int) -> list[int]:
        return [value if i == place else field for i, field in enumerate(direct)]

    names = ("gradient", "momentum", "direction", "bias_gradient", "bias_momentum", "inverse", "mean", "root")
    for place, name in enumerate(names):
        for value in (0, direct[place] + 2):
            with pytest.raises(ValueError, match=f"{name}.* (has entries but a null|is not aligned|come together)"):
                call_direct(changed(place, value))
    for fields, message in (
        (changed(8, 1), "its sums, rows or shares"), (changed(9, 1), "its sums, rows or shares"),
        (changed(13, 3), "inverse has blocks of side 3 for 4"), (changed(14, 145), "root has blocks of side 145"),
        (changed(15, 1), "its sums, rows or shares"), (changed(10, 0), "no matrices"),
        (changed(2, direct[1]), "overlap"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call_direct(fields)
    with pytest.raises(ValueError, match="partials has entries but a null"):
        call_direct(direct, sums=0)
    with pytest.raises(ValueError, match="shares is not aligned"):
        call_direct(direct, share=shares + 4)

    names_of_all = (
        "row_scales", "row_square", "independent", "growth", "radius", "coherence", "sums", "scales",
        "products", "weight_norm", "shorter",
    )  # fmt: skip
    everything = address(
        *(layers.numbers[name] for name in names_of_all), layers.partials, layers.mixed_biases, layers.input_size,
        layers.steps, layers.bias_shares, layers.norms,
    )  # fmt: skip
    fields = [*address(layers.bias_momentum[0], layers.bias_directions[0], layers.bias_gradients[0]), 0, 0, 2, 1, 0, 0]

    def call_finish(numbers: list[int], of_layer: list[int]) -> None:
        layer = (of_layer, 1.0, (0.1, 0, kind))
        native.fused_finish([layer], kind, numbers, 12, 2, 1, 1, [0.5] * 19, 0, where)

    for place in range(17):
        for value in (0, everything[place] + 2) if place < 16 else (everything[place] + 2,):
            with pytest.raises(ValueError, match=r"has entries but a null|is not aligned"):
                call_finish([value if i == place else x for i, x in enumerate(everything)], fields)
    for place, value in ((0, 0), (1, fields[1] + 1), (3, 1), (4, 3), (5, 3), (6, 2), (7, 1), (8, 1)):
        with pytest.raises(ValueError, match=r"come together|is not aligned|are not among those"):
            call_finish(everything, [value if i == place else x for i, x in enumerate(fields)])
    assert simulated.launches == []


@pytest.mark.skipif(SANITIZED, reason="its CPU side needs the installed native module")
@pytest.mark.parametrize("scale", [1.0, 2.0**-80, 2.0**70])
def test_the_chain_is_the_step_of_the_cpu(simulated: Simulator, scale: float) -> None:
    """Both ops, with rows and layers scaled, against the CPU's tables: averages, agreement, directions, and their lengths."""
    shapes = [Shape(12, 10, 6, 5, groups=2), Shape(9, 8, 9, 4, bias=False)]
    layers = Layers.random(shapes, scale)
    layers.steps -= 1  # the tables count this step themselves
    layers.numbers["row_square"].mul_(0.2)
    parameters, momentum, gradients, outputs, of_layers = [], [], [], [], []
    rows = layers.numbers["row_square"].split([s.rows for s in shapes])
    for i, shape in enumerate(shapes):
        place = len(parameters)
        given = [(layers.momentum[i], layers.gradients[i]), (layers.bias_momentum[i], layers.bias_gradients[i])]
        for average, gradient in given:
            if average is not None and gradient is not None:
                parameters.append(torch.randn_like(average))
                momentum.append(average.clone())
                gradients.append(gradient)
                outputs.append(torch.empty_like(average))
        square = rows[i].clone().view(shape.groups, shape.m)
        of_layers.append(StepLayer(place, place + 1 if shape.bias else None, shape.d, square, 0.5 + shape.m))
    steps = layers.steps[[0, 0, 1]].clone()
    names = ("independent", "weight_norm", "growth", "radius", "coherence")
    numbers = [steps, *(layers.numbers[name].clone() for name in names), layers.input_size.clone()]
    tables = StepTables(parameters, momentum, [None] * len(parameters), of_layers, [], numbers, SETTINGS)
    tables.average(gradients, [output.data_ptr() for output in outputs])
    tables.observe()
    factors = zip(layers.inverses, layers.means, layers.roots, strict=True)
    tables.direct([StepFactor(*factor) for factor in factors])
    sums = torch.tensor(tables.sums(), dtype=torch.float64).view(-1, 4)
    products = tables.bound([0.1, 0.1])

    layers.steps += 1
    layers.shares = DECAY / (1 - DECAY ** layers.steps.double())
    layers.bias_shares = layers.shares.clone()
    layers.direct("tf32x3")
    layers.finish()
    scales = layers.numbers["row_scales"].split([s.rows for s in shapes])
    found = [d * scale.view(*d.shape[:2], 1) for d, scale in zip(layers.directions, scales, strict=True)]
    assert layers.bias_directions[0] is not None
    for own, right in zip((found[0], layers.bias_directions[0], found[1]), outputs, strict=True):
        assert relative_errors(own, right.double())[0] <= 2e-6
    torch.testing.assert_close(layers.numbers["sums"], sums, rtol=1e-5, atol=0)
    torch.testing.assert_close(layers.numbers["products"].tolist(), products, rtol=1e-5, atol=0)
    for name, right in zip(names, numbers[1:-1], strict=True):
        torch.testing.assert_close(layers.numbers[name], right, rtol=1e-5, atol=0)
    kept = torch.cat([layer.row_square.flatten() for layer in of_layers])
    torch.testing.assert_close(layers.numbers["row_square"], kept, rtol=1e-6, atol=0)
