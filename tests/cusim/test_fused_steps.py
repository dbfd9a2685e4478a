"""Whole steps of the default preset by the CUDA kernels, simulated, against those of the CPU."""

from __future__ import annotations

import contextlib

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
            with cuda_kernels_on_cpu() as simulator, pytest.MonkeyPatch.context() as patched:
                patched.setattr("lnb.context.known_finite", lambda _: None)  # which asks the CPU's kernels
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


@pytest.mark.parametrize(
    ("dtype", "head", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-3),
        (torch.bfloat16, torch.bfloat16, 3e-2),
        (torch.bfloat16, torch.float32, 3e-2),
    ],
)
def test_images_with_their_channels_last(dtype: torch.dtype, head: torch.dtype, tolerance: float) -> None:
    """Weights in another memory order than their directions, grouped, normalised; in 16 bits with masters, also beside others."""
    found = []
    for simulated in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6),
            nn.Flatten(), nn.Linear(96, 3),
        ).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # fmt: skip
        model[5].to(head)
        optimizer = lnb.LNB(model, lr=0.05, products="tf32x3", master_weights=True, block_size=18)
        for seed in range(3):
            x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
            optimizer.zero_grad()
            model[5](model[:5](x).to(head)).float().square().mean().backward()
            with cuda_kernels_on_cpu() if simulated else contextlib.nullcontext() as simulator:
                optimizer.step()
                if simulator is not None:
                    kinds = 1 + (dtype != head)
                    assert simulator.launches.count("fused_step.direct") == kinds
                    assert (
                        simulator.launches[-2 * kinds :] == ["fused_step.finish"] * kinds + ["fused_step.apply"] * kinds
                    )
        found.append([parameter.detach().float() for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())
