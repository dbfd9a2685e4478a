"""Whole steps of the default preset by the CUDA kernels, simulated, against those of the CPU."""

from __future__ import annotations

import pytest
import torch
from cusim.simulated import cuda_kernels_on_cpu
from torch import nn

import lnb


def model_and_batch() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.LayerNorm(10), nn.Linear(10, 12, bias=False), nn.Tanh(), nn.Linear(12, 2)
    )
    return model, torch.randn(24, 6), torch.randn(24, 2)


def trained(simulated: bool, steps: int, products: str) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    model, x, y = model_and_batch()
    optimizer = lnb.LNB(model, lr=0.05, block_size=6, weight_decay=0.1, products=products)
    launches = []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        if simulated:
            with cuda_kernels_on_cpu() as simulator:
                optimizer.step()
                launches.append(list(simulator.launches))
        else:
            optimizer.step()
    return model.state_dict(), launches


# Gradients of two outputs have output moments of rank two: what their roots raise beside is rounding, which differs.
@pytest.mark.parametrize(("products", "tolerance"), [("tf32x3", 5e-3), ("tf32", 2e-2), ("bf16", 5e-2)])
def test_steps_are_those_of_the_cpu(products: str, tolerance: float) -> None:
    expected, _ = trained(False, 6, products)
    found, launches = trained(True, 6, products)
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max()
        assert float(error) <= tolerance, (name, error)
    for of_step in launches:
        assert [of_step.count(f"fused_step.{part}") for part in ("direct", "finish", "apply")] == [1, 1, 1]
    assert launches[3] == ["multi_tensor.all_finite", "fused_step.direct", "fused_step.finish", "fused_step.apply"]
