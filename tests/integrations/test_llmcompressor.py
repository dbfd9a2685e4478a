"""llm-compressor quantises by our moments as by its own calibration: its Hessian is ours, times the rows of a sample.

The package pins other versions of the trainers than ``requirements/trainers.txt``, so it is in none of our environments. A first
test checks the format by a double of it; the others run where somebody installed it (llmcompressor 0.12, torch 2.13).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from moments_support import images, rows_of, small_model
from torch import Tensor, nn

import lnb
from lnb.moments import gptq


def sums_of(module: nn.Module, batches: list[Tensor]) -> tuple[Tensor, int]:
    """What its GPTQ keeps of a module until it quantises: the sum of ``2 x x'`` over rows, and the number of samples."""
    rows = torch.cat([rows_of(module, x)[0] for x in batches])
    return 2 * rows.mT @ rows, sum(len(x) for x in batches)


@pytest.mark.parametrize(("name", "rows_per_sample"), [("0", 16), ("3", 1)])
def test_our_hessian_is_its_own_for_one_row_of_a_sample(name: str, rows_per_sample: int) -> None:
    """A convolution of 4 x 4 positions, and a linear layer."""
    model, batches = small_model(), [images(8, 0), images(5, 1)]
    moments = lnb.gather_moments(model, batches)
    inputs = [model[: int(name)](x).detach() for x in batches]
    total, samples = sums_of(model.get_submodule(name), inputs)
    torch.testing.assert_close(
        moments.to_gptq_hessian(name).double() * rows_per_sample, total / samples, rtol=1e-5, atol=1e-6
    )


def linear() -> tuple[nn.Sequential, list[Tensor], Any]:
    """A layer with what the package attaches to it, batches of 8 samples of 10 tokens, and 3 bits for each row."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    calibration = pytest.importorskip("llmcompressor.modifiers.quantization.calibration")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 24, bias=False))
    mixing = torch.randn(48, 48) / 7
    wanted = quantization.QuantizationArgs(num_bits=3, symmetric=False, strategy="channel")
    model[0].quantization_scheme = quantization.QuantizationScheme(targets=["Linear"], weights=wanted)
    calibration.initialize_observer(model[0], "weight")
    calibration.observe(model[0], "weight")
    return model, [torch.randn(8, 10, 48) @ mixing for _ in range(4)], wanted


def test_it_chooses_the_same_weights_by_ours_as_by_its_own() -> None:
    package = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize", reason="llmcompressor is not installed")
    model, batches, wanted = linear()
    module = model[0]
    theirs, samples = package.make_empty_hessian(module), torch.zeros(())
    for x in batches:
        theirs, samples = package.accumulate_hessian(x, module, theirs, samples)
    ours = lnb.gather_moments(model, batches).to_gptq_hessian("0")
    torch.testing.assert_close(ours * 10, theirs / samples, rtol=1e-4, atol=1e-5)
    by_ours = package.quantize_weight(module=module, quant_args=wanted, hessian=ours.clone())[-1]["weight"]
    by_its_own = package.quantize_weight(module=module, quant_args=wanted, hessian=theirs / samples)[-1]["weight"]
    torch.testing.assert_close(by_ours, by_its_own, rtol=1e-3, atol=1e-3)


def test_it_errs_no_more_by_ours_than_our_reference() -> None:
    """On the rows themselves; its grid differs from ours in rounding the zero."""
    package = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize", reason="llmcompressor is not installed")
    model, batches, wanted = linear()
    moments = lnb.gather_moments(model, batches)
    found = package.quantize_weight(module=model[0], quant_args=wanted, hessian=moments.to_gptq_hessian("0"))
    rows = torch.cat(batches).flatten(0, 1)
    error = ((model[0].weight - found[-1]["weight"]) @ rows.mT).square().sum() / len(rows)
    reference = gptq(model[0].weight, moments["0"], 3)
    assert error < 1.2 * reference.error < reference.rounding_error
