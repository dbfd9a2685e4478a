"""Small layers of CG scope "neuron" share a call of ``pcg_layers``; nothing else about a step changes."""

from __future__ import annotations

import copy

import pytest
import torch
from cusim.simulated import cuda_kernels_on_cpu
from torch import Tensor, nn

import lnb
import lnb_kernels as lk
from lnb.solvers.equations import Equation, solve_equation, solve_joined

WIDE = 140  # features, with a bias more than one launch takes
NEURONS = {"preset": "paper", "cg_scope": "neuron", "lr": 0.1}


def mixed() -> nn.Module:
    """A grouped convolution, layers with and without a bias, one frozen bias, and one wide layer."""
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, WIDE, bias=False), nn.Tanh(),
        nn.Linear(WIDE, 9), nn.LayerNorm(9), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3),
    )  # fmt: skip
    model[7].bias.requires_grad_(False)
    return model


def train(model: nn.Module, steps: int, **options: object) -> lnb.LNB:
    optimizer = lnb.LNB(model, **(NEURONS | options))
    for step in range(steps):
        x = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ridge_mode": "relative"},
        {"b_s": 0.5, "refresh_every": 2},
        {"trust_region": "neuron"},
        {"cg_iterations": 3, "momentum": 0.0},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_steps_have_the_bits_of_layers_solved_alone(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over steps that start from the last direction; figures of the layers included."""
    torch.manual_seed(0)
    joined = mixed()
    alone = copy.deepcopy(joined)
    figures = train(joined, 4, **options).diagnostics(layers=True)
    monkeypatch.setattr(Equation, "joins", False)
    for name, value in train(alone, 4, **options).diagnostics(layers=True).items():
        assert figures[name] == value, name
    assert sum(name.endswith("/residual") for name in figures) == 5
    for ours, right in zip(joined.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, right)


def test_one_call_for_all_small_layers_of_a_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    together, single = lk.pcg_layers, lk.pcg

    def counted_together(moments: list[Tensor], *args: object, **kwargs: object) -> object:
        calls.append(len(moments))
        return together(moments, *args, **kwargs)

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return single(*args, **kwargs)

    monkeypatch.setattr(lk, "pcg_layers", counted_together)
    monkeypatch.setattr(lk, "pcg", counted)
    train(mixed(), 1)
    assert calls == [1, 4]  # the wide layer, and the rest
    calls.clear()
    train(mixed(), 1, cg_scope="layer")
    assert calls == [1] * 5
    calls.clear()
    model = mixed()
    groups = [{"params": model[:5].parameters()}, {"params": model[5:].parameters(), "ridge": 0.5}]
    train(model, 1, params=groups)
    assert calls == [1, 2, 2]


def test_layers_in_float64_are_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lk, "pcg_layers", None)
    model = mixed().double()
    optimizer = lnb.LNB(model, **NEURONS)
    model(torch.randn(8, 4, 4, 4, dtype=torch.float64)).square().mean().backward()
    optimizer.step()


def test_a_gpu_has_one_launch_for_all_of_them() -> None:
    """The CUDA kernels, simulated on the CPU."""
    torch.manual_seed(0)
    model = mixed()
    plain = copy.deepcopy(model)
    train(plain, 2)
    with cuda_kernels_on_cpu() as simulator:
        train(model, 2)
        assert simulator.launches.count("pcg_rows") == 2  # of two steps
    for ours, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def test_without_rows_the_solution_is_zero() -> None:
    gradient, s = torch.ones(1, 3, 4), torch.zeros(1, 5, 5)
    arrow = torch.zeros(1, 4), torch.ones(1, 4)
    equation = Equation(s, gradient, None, arrow, 0.5, 2, "neuron", has_samples=torch.tensor(False))
    for solution, _ in (solve_equation(equation), *solve_joined([equation])):
        assert torch.equal(solution, torch.zeros(1, 3, 4))
