"""Launches have at most 65,535 programs in their second and third dimension, which is what GPUs take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_support import DEVICE

from lnb_kernels._triton import gram
from lnb_kernels._triton.launch import MOST_BLOCKS
from lnb_kernels.conv2d import triton_kernel as conv_kernel
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.newton_schulz import reference as newton_reference
from lnb_kernels.newton_schulz import triton_kernel as newton_kernel
from lnb_kernels.pcg import reference as pcg_reference
from lnb_kernels.pcg import triton_kernel as pcg_kernel
from lnb_kernels.second_moment import reference, triton_kernel

BENCH = Path(__file__).resolve().parents[2] / "bench"


class Recorded:
    """A kernel whose grids are noted."""

    def __init__(self, kernel: Any, grids: list[tuple[int, ...]]) -> None:
        self.kernel, self.grids = kernel, grids

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return self.kernel[grid]


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The grids of the Gram kernel."""
    found: list[tuple[int, ...]] = []
    monkeypatch.setattr(gram, "gram_kernel", Recorded(gram.gram_kernel, found))
    return found


def test_many_blocks_of_features(grids: list[tuple[int, ...]]) -> None:
    x = torch.randn(300, 8 * 5, device=DEVICE)
    expected = torch.stack([reference.second_moment(part) for part in x.split(5, dim=1)])
    torch.testing.assert_close(triton_kernel.second_moment(x, blocks=8), expected)
    assert {len(grid) for grid in grids} == {1}  # the first dimension holds all blocks


def test_many_matrices(grids: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton_kernel, "symmetric_products_pay", lambda size: True)
    power = torch.eye(20, device=DEVICE) / 5 + 0.01 * torch.ones(7, 20, 20, device=DEVICE)
    actual = newton_kernel.newton_schulz_root(power, [3.4, -4.8, 2.0], 2)
    torch.testing.assert_close(actual, newton_reference.newton_schulz_root(power, [3.4, -4.8, 2.0], 2))
    assert {len(grid) for grid in grids} == {1}


@pytest.mark.parametrize("scope", ["neuron", "layer"])
def test_many_systems_of_equations(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are solved by plain PyTorch."""
    x = torch.randn(5, 30, 4, device=DEVICE)
    s = x.mT @ x
    arguments = (s, torch.randn(5, 2, 4, device=DEVICE), None, None, None, 2, 0.1, scope, 2)
    monkeypatch.setattr(pcg_kernel, "MOST_BLOCKS", 4)
    for name in ("by_rows", "by_phases"):
        monkeypatch.setattr(pcg_kernel, name, None)
    for actual, expected in zip(pcg_kernel.pcg(*arguments), pcg_reference.pcg_moment(*arguments), strict=True):
        torch.testing.assert_close(actual, expected)


def test_many_groups_and_border_cells_of_a_convolution() -> None:
    def route(channels: int, groups: int, kernel: int, size: int) -> str:
        conv = Geometry((kernel, kernel), (1, 1), (kernel // 2,) * 4, (1, 1), groups)
        return conv_kernel.route(torch.empty(1, channels, size, size, device="meta"), conv)

    assert route(MOST_BLOCKS, MOST_BLOCKS, 3, 4) == "depthwise"
    assert route(MOST_BLOCKS + 1, MOST_BLOCKS + 1, 3, 4) == "reference"
    assert route(16, 1, 31, 300) == "shifts"
    assert route(16, 1, 127, 300) == "patches"  # whose table of taps and cells the host would make for 25 seconds
    assert route(16, 1, 191, 500) == "patches"


LARGEST = f"""
import sys
sys.path[:0] = [{str(BENCH)!r}]
import torch
from launches import record
from lnb_kernels._triton.arch import ARCHS
from lnb_kernels.conv2d import triton_kernel as conv
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.cov_matvec.triton_kernel import cov_matvec
from lnb_kernels.linear.triton_kernel import linear_backward
from lnb_kernels.newton_schulz.triton_kernel import newton_schulz, newton_schulz_root
from lnb_kernels.pcg.triton_kernel import pcg
from lnb_kernels.second_moment.triton_kernel import second_moment

def e(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

def code(groups, kernel=3, stride=1):
    return Geometry((kernel, kernel), (stride, stride), (kernel // 2,) * 4, (1, 1), groups).encode()

most, rows, f32 = 65_535, 2**31 - 2**17, torch.float32
CALLS = {{
    "rows": lambda: second_moment(e(rows, 8)),
    "features": lambda: second_moment(e(4096, 100_000)),
    "blocks": lambda: second_moment(e(4096, 150_000 * 8), blocks=150_000),
    "linear": lambda: linear_backward(e(rows, 16), e(rows, 8), e(16, 8), [True] * 4),
    "matvec": lambda: cov_matvec(e(rows, 2048), e(32, 2049)),
    "matrices": lambda: newton_schulz(e(140_000, 144, 144), [3.4, -4.8, 2.0], 1),
    "roots": lambda: newton_schulz_root(e(140_000, 144, 144), [3.4, -4.8, 2.0], 1),
    "groups by patches": lambda: conv.conv2d_second_moment(e(64, 2 * most, 64, 64), code(most)),
    "depthwise": lambda: conv.conv2d_second_moment(e(8, most, 16, 16), code(most)),
    "positions by patches": lambda: conv.conv2d_second_moment(e(8000, 8, 512, 512), code(1)),
    "matvec of groups": lambda: conv.conv2d_cov_matvec(e(8, most, 32, 32), e(most, 10), 0.1, code(most)),
    "shifts": lambda: conv.conv2d_second_moment(e(8000, 64, 512, 512), code(1)),
    "border cells": lambda: conv.conv2d_second_moment(e(1, 16, 300, 300), code(1, 31)),  # 223,913 programs
    "systems, rows": lambda: pcg(e(most, 9, 9, dtype=f32), e(most, 700, 9, dtype=f32), None, None, None, 2, 0.1, "neuron", 2),
    "systems": lambda: pcg(e(most, 9, 9, dtype=f32), e(most, 7, 9, dtype=f32), None, None, None, 2, 0.1, "layer", 3),
    "large system": lambda: pcg(e(2**17, 2**17, dtype=f32), e(2**17, 2**17, dtype=f32), None, None, None, 1, 0.1, "layer", 2),
}}
for name, call in CALLS.items():
    for arch in ("sm_80", "sm_100"):
        launches = record(call, ARCHS[arch])
        assert launches, name
        for launch in launches:
            first, second, third = (*launch.grid, 1, 1)[:3]
            assert 0 < first < 2**31 and 0 < second <= most and 0 < third <= most, (name, arch, launch.name, launch.grid)
print("all")
"""


def test_the_largest_inputs() -> None:
    """What would be launched, without data, by Triton without its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", LARGEST], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "all\n", done.stdout + done.stderr[-3000:]
