"""The plan against what a step really keeps and computes."""

from __future__ import annotations

import pytest
import torch
from flops import count_flops
from torch import Tensor, nn

import lnb
from lnb.config import resolve_config
from lnb.layers.capture import Samples
from lnb.layers.claimed import Layer
from lnb.planning.cost import layer_cost
from lnb.planning.rates import default_rates
from lnb_kernels._triton.crossover import FEW_NEURONS, fused_matvec_pays

SETTINGS = [
    {"preset": "paper"},
    {"preset": "paper", "refresh_every": 3},
    {"preset": "paper", "solver": "matrix_free"},
    {"preset": "paper", "solver": "dual"},
    {"preset": "paper", "solver": "arrow"},
    {"preset": "paper", "solver": "cholesky"},
    {"preset": "paper", "solver": "auto", "b_s": 0.5},
    {},
    {"block_size": 4},
    {"trust_region": "spectral"},
    {"trust_region": "layer", "b_s": 0.0},
    {"damping": "none"},
    {"max_relative_change": None},
    {"preset": "full_batch"},
    {"preset": "paper", "damping": "gain", "max_relative_change": 1.0},
]


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 2, bias=False),
        nn.Flatten(),
        nn.Linear(36, 5),
    )


def backward(model: nn.Module, optimizer: lnb.LNB) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 4, 4, 4)).square().mean().backward()


def step(model: nn.Module, optimizer: lnb.LNB) -> None:
    backward(model, optimizer)
    optimizer.step()


def test_in_self_attention_one_second_moment_serves_query_key_and_value() -> None:
    attention = nn.MultiheadAttention(6, 2)
    row = next(iter(lnb.LNB(attention, 0.01, "paper").plan()))
    assert row.layer == "in_proj_weight"
    assert row.flops_per_sample == 7**2
    assert row.moment_bytes == 4 * 7**2


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_state_bytes_are_what_the_state_holds(settings: dict[str, object]) -> None:
    model = net()
    optimizer = lnb.LNB(model, 0.01, **settings)  # type: ignore[arg-type]
    step(model, optimizer)
    held = {id(t): t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)}
    assert optimizer.plan().state_bytes == sum(t.numel() * t.element_size() for t in held.values())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gathered_bytes_are_what_a_backward_pass_leaves(settings: dict[str, object]) -> None:
    model = net()
    optimizer = lnb.LNB(model, 0.01, **settings)  # type: ignore[arg-type]
    step(model, optimizer)  # the planner learns the rows
    backward(model, optimizer)
    captures = [capture for layer in optimizer._inventory.layers for capture in layer.captures]
    held = [capture.moments for capture in captures if capture.moments is not None]
    assert sum(row.moment_bytes for row in optimizer.plan()) == sum(t.numel() * t.element_size() for t in held)
    assert any(capture.inputs for capture in captures) == any(row.input_bytes for row in optimizer.plan()) == (not held)
    assert optimizer.plan().gathered_bytes > 0


@pytest.mark.parametrize(
    "settings", [{}, {"trust_region": "layer"}, {"trust_region": "spectral"}, {"block_size": None}], ids=str
)
def test_flops_between_refreshes_are_those_of_the_products(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own count of matrix-product FLOPs of a step; the mean of the bias column is not in the plan."""
    monkeypatch.setattr("lnb.step.prepare", lambda *_: None)  # whose products torch does not see
    model = nn.Sequential(nn.Linear(300, 40, bias=False), nn.Tanh(), nn.Linear(40, 30, bias=False))
    optimizer = lnb.LNB(model, 0.01, **settings)  # type: ignore[arg-type]
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(8, 300)).square().mean().backward()
        with count_flops() as counter:
            optimizer.step()
    assert counter.get_total_flops() == sum(row.solve_flops for row in optimizer.plan())


def test_a_refresh_is_shared_out_where_factors_take_longer_to_make_than_to_send() -> None:
    model = net()
    optimizer = lnb.LNB(model, lr=0.01)
    assert optimizer.plan().refresh_seconds(4, 1e9) is None
    backward(model, optimizer)
    optimizer.step()
    plan = optimizer.plan(default_rates(torch.device("cpu")))
    made = ("second_moment", "factor", "factor_mean", "output_moment", "output_factor")
    state = optimizer.state
    kept = sum(state[p][key].nbytes for p in model.parameters() for key in made if key in state[p])
    assert sum(row.refreshed_bytes for row in plan) == kept
    alone, fast = plan.refresh_seconds(4, 1e12) or (0.0, 0.0)
    _, slow = plan.refresh_seconds(4, 1e6) or (0.0, 0.0)
    assert fast < alone < slow
    assert slow - fast == pytest.approx(kept * 0.75 * (1e-6 - 1e-12))
    assert plan.refresh_seconds(1, 1e6) == pytest.approx((alone, alone))
    with pytest.raises(ValueError, match="ranks=0"):
        plan.refresh_seconds(0, 1e9)


def test_it_prints_every_layer() -> None:
    model = net()
    text = str(lnb.LNB(model).plan())
    for name in ("0", "2", "4"):
        assert any(line.startswith(f"{name} ") for line in text.splitlines())
    assert "state of all layers" in text


def test_a_fused_product_reads_its_inputs_once() -> None:
    """The planner and the launchers share the rule for how many neurons that pays."""
    rates = default_rates(torch.device("cuda"))
    config = resolve_config("paper", {"solver": "matrix_free"})

    def per_neuron(outputs: int, device: str) -> float:
        layer = nn.Linear(64, outputs, device=device)
        cost = layer_cost(
            Layer("layer", layer.weight, layer.bias, [layer], ["layer"]), config, Samples(1 << 22, True), rates
        )
        return (cost.solve - 3 * rates.calls(12)) / outputs

    assert fused_matvec_pays(64, FEW_NEURONS)
    assert not fused_matvec_pays(64, FEW_NEURONS + 1)
    assert per_neuron(FEW_NEURONS + 1, "meta") > 1.02 * per_neuron(FEW_NEURONS, "meta")
    assert per_neuron(FEW_NEURONS + 1, "cpu") < 1.02 * per_neuron(FEW_NEURONS, "cpu")
