"""The roofline model of the CUDA kernels: what they ask for in the simulator, and at most 5% above the least possible."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cusim.simulated import cuda_kernels_on_cpu

from lnb_kernels import multi_tensor
from lnb_kernels.pcg import cuda_kernel


def load_roofline() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "roofline.py"
    spec = importlib.util.spec_from_file_location("roofline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["roofline"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


roofline = load_roofline()
SIZES = [20_000, 8192, 3, 0, 9000]
MODEL = [768 * 768] * 150 + [768] * 150


@pytest.mark.parametrize(("x_dtype", "y_dtype"), [
    (torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16),
])  # fmt: skip
@pytest.mark.parametrize("op", roofline.MULTI_TENSOR)
def test_multi_tensor_kernels_move_what_the_model_says(op: str, x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    if op in ("apply_master_", "ema_combined_") and x_dtype != torch.float32:
        pytest.skip("it is written in float32")
    xs, ys = [torch.ones(n, dtype=x_dtype) for n in SIZES], [torch.ones(n, dtype=y_dtype) for n in SIZES]
    copies, scales = [torch.ones(n, dtype=torch.bfloat16) for n in SIZES], torch.ones(len(SIZES))
    arguments: dict[str, tuple[Any, ...]] = {
        "all_finite": (xs,),
        "dot": (xs, ys),
        "ema_combined_": (xs, ys, 0.5, scales, 0.5),
        "apply_": (xs, ys, scales, 0.5, 0.5),
        "apply_master_": (xs, copies, ys, scales, 0.5, 0.5),
    }
    with cuda_kernels_on_cpu() as simulator:
        assert (simulator.module.PIECE_SIZE, simulator.module.TENSORS_PER_LAUNCH) == (
            roofline.PIECE_SIZE,
            roofline.TENSORS,
        )
        getattr(multi_tensor, op)(*arguments.get(op, (xs, ys, 0.5)))
        model = roofline.multi_tensor(op, SIZES, xs[0].element_size(), ys[0].element_size())
        assert simulator.traffic == (model.read, model.written)
        assert len(simulator.launches) == model.launches


@pytest.mark.parametrize("op", roofline.MULTI_TENSOR)
@pytest.mark.parametrize("widths", [(4, 4), (4, 2), (2, 2)])
def test_multi_tensor_traffic_is_within_5_percent_of_the_least(op: str, widths: tuple[int, int]) -> None:
    traffic = roofline.multi_tensor(op, MODEL, *widths)
    assert traffic.read + traffic.written <= 1.05 * traffic.minimum


def test_step_of_conjugate_gradients() -> None:
    m, columns = 2, 1000
    g = torch.randn(m, columns)
    with cuda_kernels_on_cpu() as simulator:

        def product(v: torch.Tensor) -> torch.Tensor:
            simulator.set()  # what the start moved is not counted
            return g

        cuda_kernel.iterate(product, g, None, None, None, False, 1, "neuron", 2)
        model = roofline.pcg_step(m, columns)
        assert simulator.traffic == (model.read, model.written)
    model = roofline.pcg_step(1024, 4096)
    assert model.read - model.repeated + model.written <= 1.05 * model.minimum
