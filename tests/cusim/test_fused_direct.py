"""The CUDA kernel of :func:`lnb_kernels.fused_step.direct_layers_`, simulated on the CPU."""

from __future__ import annotations

import pytest
import torch
from cusim.fused_layers import Layers, Shape
from cusim.simulated import ORDERS, SANITIZED, Simulator
from support import assert_close_to_reference, relative_errors
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels.fused_step import left_over, serves

SHAPES = [
    Shape(1, 1, 1, 1), Shape(14, 21, 7, 7, groups=2), Shape(16, 48, 16, 16, bias=False), Shape(100, 35, 100, 35),
    Shape(6, 40, 3, 20, bias=False), Shape(80, 12, 80, 12, groups=2),
]  # fmt: skip
LARGE = [Shape(128, 144, 128, 144), Shape(144, 128, 144, 128, bias=False)]
RMS = {"tf32": 5e-4, "bf16": 4e-3}  # of H, relative


def truth_of(layers: Layers) -> Layers:
    truth = layers.copy(torch.float64)
    truth.direct()
    return truth


def plain_of(layers: Layers) -> Layers:
    plain = layers.copy()
    lk.set_backend("reference")
    plain.direct()
    lk.set_backend("native")
    return plain


def assert_exact(layers: Layers, truth: Layers, plain: Layers) -> None:
    """All that was written errs at most twice as much as float32 products in PyTorch."""
    for i, shape in enumerate(layers.shapes):
        for name in ("directions", "momentum"):
            assert_close_to_reference(*(getattr(x, name)[i] for x in (layers, truth, plain)))
        found, right, usual = layers.sums()[i], truth.sums()[i], plain.sums()[i]
        for k in range(6):
            # Sums of a few float32 products each, of which PyTorch's float64 sums happen to be more exact.
            assert (
                relative_errors(found[..., k], right[..., k])[0]
                <= 2 * relative_errors(usual[..., k], right[..., k])[0] + 5e-7
            )
        assert shape.bias or not found[..., 2].any()
    biased = torch.cat([torch.full((s.rows,), s.bias) for s in layers.shapes])
    mixed = [x.mixed_biases[biased] for x in (layers, truth, plain)]
    assert relative_errors(mixed[0], mixed[1])[0] <= 2 * relative_errors(mixed[2], mixed[1])[0] + 3e-7


@pytest.mark.parametrize("precision", ["tf32x3", "tf32", "bf16"])
def test_directions_of_all_shapes(simulated: Simulator, precision: str) -> None:
    layers = Layers.random(SHAPES + (LARGE[:1] if precision == "tf32" and not SANITIZED else []))
    truth, plain = truth_of(layers), plain_of(layers)
    simulated.set()
    layers.direct(precision)
    assert simulated.launches == ["fused_step.direct"]
    if precision == "tf32x3":
        assert_exact(layers, truth, plain)
        return
    for found, right in zip(layers.directions, truth.directions, strict=True):
        rms = relative_errors(found, right)[1]
        assert rms <= RMS[precision]
        # It is what it says, not more: one entry alone may be exact.
        assert found.numel() == 1 or rms >= RMS[precision] / 50
    for found, right in zip(layers.sums(), truth.sums(), strict=True):
        assert relative_errors(found, right)[1] <= 4 * RMS[precision]
    # What goes through no product is exact all the same.
    assert_exact_inputs(layers, truth)


def assert_exact_inputs(layers: Layers, truth: Layers) -> None:
    for found, right in zip(layers.momentum, truth.momentum, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=2e-7, atol=2e-7)
    for found, right in zip(layers.sums(), truth.sums(), strict=True):
        torch.testing.assert_close(found[..., 4:], right[..., 4:], rtol=2e-6, atol=0)


@pytest.mark.skipif(SANITIZED, reason="slow, and no access that smaller blocks do not make")
def test_the_largest_blocks_in_float32_accuracy(simulated: Simulator) -> None:
    layers = Layers.random(LARGE)
    truth, plain = truth_of(layers), plain_of(layers)
    layers.direct("tf32x3")
    assert_exact(layers, truth, plain)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradients_of_any_size(simulated: Simulator, scale: float) -> None:
    layers = Layers.random([Shape(12, 10, 6, 5, groups=2), Shape(8, 24, 8, 12, bias=False)], scale)
    layers.roots = [1e-9 * root for root in layers.roots]
    truth, plain = truth_of(layers), plain_of(layers)
    layers.direct("tf32x3")
    assert_exact(layers, truth, plain)


@pytest.mark.parametrize("direction_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [0, 1])
def test_dtypes_and_addresses(
    simulated: Simulator, gradient_dtype: torch.dtype, direction_dtype: torch.dtype, shift: int
) -> None:
    layers = Layers.random([Shape(12, 24, 6, 12), Shape(5, 8, 5, 4)], 1.0, gradient_dtype, direction_dtype)
    truth = truth_of(layers)
    for name in ("directions", "momentum", "gradients", "inverses", "roots"):
        setattr(layers, name, [shifted(x, shift) for x in getattr(layers, name)])
    layers.direct("tf32x3")
    unit = torch.finfo(direction_dtype).eps
    for found, right in zip(layers.directions, truth.directions, strict=True):
        assert relative_errors(found, right)[0] <= 4 * unit
    assert_exact_inputs(layers, truth)


def shifted(tensor: Tensor, elements: int) -> Tensor:
    """The same values; with 1, not aligned to more than an element, and NaN before them."""
    memory = torch.full((tensor.numel() + elements,), float("nan"), dtype=tensor.dtype)
    memory[elements:] = tensor.flatten()
    return memory[elements:].view(tensor.shape)


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_bits_in_every_order(simulated: Simulator, order: str) -> None:
    layers = Layers.random([Shape(18, 40, 9, 20), Shape(68, 8, 68, 8, bias=False)])
    expected = layers.copy()
    expected.direct()
    simulated.set(order, seed=3)
    layers.direct()
    assert all(torch.equal(*pair) for pair in zip(layers.tensors(), expected.tensors(), strict=True))


def test_a_launch_takes_a_table_of_layers(simulated: Simulator) -> None:
    most = simulated.module.LAYERS_PER_LAUNCH
    assert most >= 96  # GPT-2 of the largest size has 192 layers, of the usual one 48
    layers = Layers.random([Shape(1, 1, 1, 1)] * (most + 1))
    truth = truth_of(layers)
    simulated.set()
    layers.direct("tf32x3")
    assert simulated.launches == ["fused_step.direct"] * 2
    torch.testing.assert_close(
        torch.stack(layers.directions).double(), torch.stack(truth.directions), rtol=1e-5, atol=1e-5
    )


def test_a_verdict_that_is_not_ok_writes_nothing(simulated: Simulator) -> None:
    layers = Layers.random(SHAPES[:3])
    before = layers.copy()
    layers.direct(ok=torch.tensor(False))
    assert simulated.launches == ["fused_step.direct"]
    assert all(torch.equal(*pair) for pair in zip(layers.tensors(), before.tensors(), strict=True))
    layers.direct(ok=torch.tensor(True))
    before.direct()
    assert all(torch.equal(*pair) for pair in zip(layers.tensors(), before.tensors(), strict=True))


def test_a_gradient_that_is_not_finite_stays_in_its_rows_block(simulated: Simulator) -> None:
    layers = Layers.random([Shape(12, 20, 6, 10)])
    layers.gradients[0][0, 7, 3] = float("nan")
    layers.direct()
    finite = layers.directions[0].isfinite()
    assert finite[0, :6].all()
    assert not finite[0, 6:, :10].any()
    assert finite[0, 6:, 10:].all()
    assert layers.sums()[0][0, 7].isnan().any()


def test_layers_that_the_kernel_does_not_take(simulated: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one kind are taken in one call."""
    odd = [Shape(145, 4, 145, 2), Shape(2, 290, 1, 145, groups=2, bias=False)]
    layers = Layers.random([Shape(4, 6, 2, 3), odd[0], Shape(6, 8, 3, 4), odd[1], odd[0], odd[1], odd[0]])
    layers.inverses[2] = layers.inverses[2].mT.contiguous().mT
    calls: list[int] = []
    plain_call = left_over.direct_layer_
    monkeypatch.setattr(
        left_over, "direct_layer_", lambda *arguments: (calls.append(len(arguments)), plain_call(*arguments))
    )

    def served(i: int) -> bool:
        names = ("directions", "momentum", "gradients", "bias_gradients", "bias_momentum", "inverses", "means", "roots")
        return serves(*([getattr(layers, name)[i]] for name in names))

    assert [served(i) for i in range(4)] == [True, False, False, False]
    before = layers.copy()
    layers.direct("tf32x3", torch.tensor(False))
    for name in ("directions", "momentum", "partials", "mixed_biases"):
        assert all(map(torch.equal, getattr(layers, name), getattr(before, name))), name
    truth, plain = truth_of(layers), plain_of(layers)
    simulated.set()
    calls.clear()
    layers.direct("tf32x3")
    assert simulated.launches == ["fused_step.direct"]
    assert len(calls) == 3
    assert_exact(layers, truth, plain)


def traffic(shape: Shape) -> tuple[int, int, int, int]:
    """Bytes read, of these again by other tiles and threads, and so from a cache; written; and the least of all."""
    rows, columns, entries = shape.m // shape.side, shape.d // shape.size, shape.m * shape.d
    tiles, strips = rows * columns, -(-shape.side // 64)
    root, inverse = 4 * shape.side**2, 4 * shape.size**2
    diagonal, shares = 4 * shape.side, 8 * 256  # of P^(-1/2) ahead of the whole, and the layer's by each thread
    of_tile = root + strips * inverse + diagonal + shares
    factors = rows * root + columns * inverse
    sums = 6 * 8 * shape.m * columns
    return 8 * entries + tiles * of_tile, tiles * of_tile - factors, 8 * entries + sums, 16 * entries + factors


@pytest.mark.parametrize("shape", [Shape(64, 96, 32, 48, bias=False), Shape(68, 8, 68, 4, bias=False)])
def test_traffic_is_what_the_model_says(simulated: Simulator, shape: Shape) -> None:
    layers = Layers.random([shape])
    simulated.set()
    layers.direct()
    read, _, written, _ = traffic(shape)
    assert simulated.traffic == (read, written)


@pytest.mark.parametrize("shape", [Shape(768, 768, 128, 128), Shape(3072, 768, 128, 128), Shape(576, 2304, 144, 144)])
def test_traffic_is_within_5_percent_of_the_least(shape: Shape) -> None:
    """The least: gradients and averages once, averages and directions once back, and the factors once."""
    read, again, written, least = traffic(shape)
    assert read - again + written <= 1.05 * least
