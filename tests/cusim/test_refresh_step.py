"""Whole steps of LNB on the simulated CUDA kernels: the refresh of many layers, against that of the CPU."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from cusim.simulated import cuda_kernels_on_cpu
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lnb
from lnb import step as stages
from lnb.statistics import refresh as refreshing
from lnb.statistics import split_refresh
from lnb_kernels.refresh import AveragedGradient

KEPT = {"second_moment", "second_moment_step", "factor", "factor_mean", "output_moment", "output_factor"}
KERNELS = ["average_moments", "input_metrics", "output_moments", "output_roots"]


class Block(nn.Module):
    """Attention and a gated layer, with a bias here and there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        mixed: Tensor = self.norm(x + self.down(torch.tanh(self.up(x))))
        return mixed


class Calls(TorchDispatchMode):
    """Counts the operators of PyTorch that do work."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.detach.default and "view" not in func._schema.name:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def stepped(
    simulated: bool, blocks: int, count: int, **settings: Any
) -> tuple[nn.Module, lnb.LNB, list[str], list[str]]:
    """A model after steps on few samples; the launches of the last refresh, and its other calls."""
    torch.manual_seed(3)
    width = 6
    model = nn.Sequential(nn.Conv2d(2, width, 3), nn.Flatten(2), *[Block(16) for _ in range(blocks)])
    optimizer = lnb.LNB(model, lr=0.02, refresh_every=1, **settings)
    images, targets = torch.randn(4, 2, 6, 6), torch.randn(4, width, 16)
    launches: list[str] = []
    calls = Calls()
    with (
        cuda_kernels_on_cpu() if simulated else contextlib.nullcontext() as simulator,
        pytest.MonkeyPatch.context() as patch,
    ):

        def refresh(*arguments: Any) -> None:
            if simulator is not None:
                simulator.set()
            calls.names.clear()
            with calls:
                refreshing.refresh(*arguments)
            if simulator is not None:
                launches[:] = simulator.launches

        patch.setattr(split_refresh, "refresh", refresh)
        patch.setattr(stages, "prepare", lambda *_: None)  # the form of the stages that accelerators take
        for _ in range(count):
            optimizer.zero_grad()
            (model(images) - targets).square().mean().backward()
            optimizer.step()
    return model, optimizer, launches, calls.names


def require_same_statistics(model: nn.Module, optimizer: lnb.LNB, usual: nn.Module, right: lnb.LNB) -> None:
    compared = set()
    for parameter, other in zip(model.parameters(), usual.parameters(), strict=True):
        found, expected = optimizer.state[parameter], right.state[other]
        assert found.keys() == expected.keys()
        for key in KEPT & expected.keys():
            compared.add(key)
            value, near = expected[key], 5e-3 if key == "output_factor" else 1e-4  # a root magnifies what rounding does
            torch.testing.assert_close(found[key], value, rtol=near, atol=near * float(value.abs().max()), msg=key)
    assert compared >= {"factor", "factor_mean", "output_factor"}


@pytest.mark.parametrize("settings", [{}, {"b_s": 0.0, "ridge_mode": "absolute", "sample_ridge": 0.0}])
def test_refresh_is_that_of_the_cpu(settings: dict[str, Any]) -> None:
    model, optimizer, launches, _ = stepped(True, 1, 1, block_size=12, **settings)
    usual, right, _, _ = stepped(False, 1, 1, block_size=12, **settings)
    assert launches == KERNELS
    require_same_statistics(model, optimizer, usual, right)


def test_a_refresh_is_as_many_calls_for_many_layers_as_for_few() -> None:
    _, _, launches, few = stepped(True, 1, 2)
    _, _, same, many = stepped(True, 2, 2)
    assert launches == same == KERNELS
    assert many == few
    assert {name.split(".")[1] for name in many} == {"empty", "split_with_sizes"}  # memory, and no work


def test_layers_that_the_kernels_do_not_take_are_refreshed_beside_the_others() -> None:
    """One with a block of 150 inputs, one of two neurons, and one of 150 neurons."""
    results = []
    for simulated in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(150, 2), nn.Tanh(), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 150))
        optimizer = lnb.LNB(model, lr=0.02, block_size=None)
        model(torch.randn(300, 150)).square().mean().backward()
        with cuda_kernels_on_cpu() if simulated else contextlib.nullcontext() as simulator:
            optimizer.step()
            if simulator is not None:
                launches = [name for name in simulator.launches if not name.startswith(("multi_tensor", "fused_step"))]
                assert launches == [*KERNELS, "newton_schulz_root", "spd_inverse"]  # of the first layer, of the last
        results.append((model, optimizer))
    require_same_statistics(*results[0], *results[1])


def test_averages_that_are_formed_where_they_are_read() -> None:
    """The refresh takes gradients and their averages in place of their combination, by either route."""
    results = []
    for simulated in (False, True):
        with cuda_kernels_on_cpu() if simulated else contextlib.nullcontext(), pytest.MonkeyPatch.context() as patch:

            def refresh(contexts: Any, averages: Any, *arguments: Any) -> None:
                share = torch.tensor(0.5, dtype=torch.float64)
                refreshing.refresh(
                    contexts,
                    {p: AveragedGradient(p.grad, value, share, 0.5, 0.25) for p, value in averages.items()},
                    *arguments,
                )

            patch.setattr(split_refresh, "refresh", refresh)
            patch.setattr(stages, "prepare_fused", lambda *_: None)  # whose steps hand over such averages themselves
            torch.manual_seed(0)
            layer = nn.Linear(5, 4)
            optimizer = lnb.LNB(layer, lr=0.02)
            layer(torch.randn(9, 5)).square().sum().backward()
            optimizer.step()
            results.append(optimizer.state[layer.weight]["output_moment"])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
