"""llm-compressor quantises by our moments as by its own calibration: its Hessian is ours, times the rows of a sample.

For a linear layer its GPTQ keeps the sum of ``2 x x'`` over all rows ``x``, float32 ``[d_in, d_in]``, and the number of samples:
the first dimension of inputs ``[samples, rows, d_in]``. It quantises by their quotient. The package pins other versions of
trainers than ``requirements/trainers.txt``, so it is in none of our environments: a first test checks the format by a double of
it, the others run where it is installed (as of 0.14).

It cannot calibrate convolutions: its accumulator has a side of ``weight.shape[1]``, the channels without the taps. What it calls
to quantise takes any matrix, so a convolution goes in as the matrix of its kernels, with our Hessian of its patches.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lnb
from lnb.moments import gptq

SAMPLES, ROWS = 8, 10


def layer() -> tuple[nn.Sequential, list[Tensor], Tensor]:
    """A layer, batches of correlated inputs, and the Hessian as llm-compressor has it, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 24, bias=False))
    mixing = torch.randn(48, 48) / 7
    batches = [torch.randn(SAMPLES, ROWS, 48) @ mixing for _ in range(4)]
    rows = torch.cat(batches).flatten(0, 1).double()
    return model, batches, 2 * rows.mT @ rows / sum(map(len, batches))


def test_our_hessian_is_its_own_for_one_row_of_a_sample() -> None:
    model, batches, theirs = layer()
    ours = lnb.gather_moments(model, batches).to_gptq_hessian("0")
    assert (ours.dtype, ours.shape) == (torch.float32, (48, 48))
    torch.testing.assert_close(ours.double() * ROWS, theirs, rtol=1e-5, atol=1e-5)


def by_it(layer: nn.Linear, hessian: Tensor) -> Tensor:
    """The weight that llm-compressor chooses in 3 bits, a grid for each row."""
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="llmcompressor is not installed")
    calibration = pytest.importorskip("llmcompressor.modifiers.quantization.calibration")
    package = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize")
    wanted = quantization.QuantizationArgs(num_bits=3, symmetric=False, strategy="channel")
    layer.quantization_scheme = quantization.QuantizationScheme(targets=["Linear"], weights=wanted)
    calibration.initialize_observer(layer, "weight")
    calibration.observe(layer, "weight")
    found: dict[str, Any] = layer.weight_observer.get_qparams()
    weight, _, fell_back = package.quantize_weight(
        layer.weight.detach().clone()[None],
        hessian.clone()[None],
        found["scale"][None],
        found["zero_point"][None],
        None,
        wanted,
    )
    assert not fell_back.any()
    return weight[0]


def test_it_chooses_the_same_weights_by_ours_as_by_its_own() -> None:
    helpers = pytest.importorskip("llmcompressor.modifiers.gptq.helpers", reason="llmcompressor is not installed")
    model, batches, double = layer()
    theirs, samples = helpers.make_empty_hessian(model[0]), torch.zeros(())
    for x in batches:
        theirs, samples = helpers.accumulate_hessian(x, model[0], theirs, samples)
    torch.testing.assert_close(theirs / samples, double.float(), rtol=1e-4, atol=1e-4)
    by_its_own = by_it(model[0], theirs / samples)
    by_ours = by_it(model[0], lnb.gather_moments(model, batches).to_gptq_hessian("0"))
    assert (by_ours != by_its_own).float().mean() < 0.01  # where rounding decides between two points


def test_it_errs_no_more_by_ours_than_our_reference() -> None:
    """On the rows themselves. Its grid and ours differ a little at their ends."""
    model, batches, _ = layer()
    moments = lnb.gather_moments(model, batches)
    rows = torch.cat(batches).flatten(0, 1)
    error = ((model[0].weight - by_it(model[0], moments.to_gptq_hessian("0"))) @ rows.mT).square().sum() / len(rows)
    reference = gptq(model[0].weight, moments["0"], 3)
    assert error < 1.3 * reference.error < reference.rounding_error


def test_a_convolution_goes_in_as_a_matrix_with_our_hessian_of_its_patches() -> None:
    helpers = pytest.importorskip("llmcompressor.modifiers.gptq.helpers", reason="llmcompressor is not installed")
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(4, 12, 3, padding=1, bias=False)), torch.randn(16, 4, 9, 9).cumsum(-1)
    moments = lnb.gather_moments(model, [images])
    empty = helpers.make_empty_hessian(model[0])
    assert empty.shape == (4, 4)  # of channels; patches have 36 entries
    with pytest.raises((RuntimeError, ValueError)):
        helpers.accumulate_hessian(images, model[0], empty, torch.zeros(()))

    matrix = nn.Linear(36, 12, bias=False)
    matrix.weight.data.copy_(model[0].weight.flatten(1))
    chosen = nn.functional.conv2d(images, by_it(matrix, moments.to_gptq_hessian("0")).view(12, 4, 3, 3), padding=1)
    error = (model(images) - chosen).square().sum(1).mean()
    reference = gptq(model[0].weight, moments["0"], 3)
    assert error < 1.3 * reference.error < reference.rounding_error
