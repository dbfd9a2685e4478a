"""Cached constants on a device outlive their cache where a captured CUDA graph reads them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import lnb
from lnb import arenas
from lnb_kernels import _captured
from lnb_kernels.conv2d import shifts
from lnb_kernels.conv2d.geometry import geometry


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """The constants that are made from now on, with empty caches before and after."""
    found: list[weakref.ref[Tensor]] = []
    for module, name in ((arenas, "_constant"), (arenas, "_owners"), (shifts, "_membership")):
        original = getattr(module, name).__wrapped__

        def recorded(*args: object, original=original) -> object:
            constants = original(*args)
            found.extend(map(weakref.ref, constants if isinstance(constants, tuple) else (constants,)))
            return constants

        monkeypatch.setattr(module, name, recorded)  # a cache that forgets at once
    monkeypatch.setattr(_captured, "_read_by_graphs", {})
    return found


def step() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 36, 4))
    optimizer = lnb.LNB(net, lr=0.01)
    net(torch.randn(2, 2, 6, 6)).square().mean().backward()
    optimizer.step()
    shifts.conv2d_second_moment_by_shifts(torch.randn(2, 3, 8, 8), geometry("test", 3, 1, 1, 1, 1))


@pytest.mark.parametrize("capturing", [True, False])
def test_constants_live_as_long_as_graphs(
    made: list[weakref.ref[Tensor]], monkeypatch: pytest.MonkeyPatch, capturing: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    step()
    gc.collect()
    assert len(made) > 3  # of the step and of the convolution
    assert {reference() is not None for reference in made} == {capturing}
