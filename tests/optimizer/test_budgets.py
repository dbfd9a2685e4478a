"""Budgets of time and memory, and the solver chosen by cost: kept, deterministic, and restored."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from optimizer.small_models import batches, copied, loss_of, mixed, same, snapshot, train
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import lnb
from lnb.layers.capture import Samples
from lnb.planning import Rates, time_budget
from lnb.planning.choice import first_choice
from lnb.planning.rates import KINDS
from lnb.planning.solver_choice import choose_solver


def rates(overhead: float = 1e-9, bandwidth: float = 1e12, **kinds: float) -> Rates:
    """A device whose calls and memory cost little, so that arithmetic decides."""
    speeds = dict.fromkeys(KINDS, 1e9) | kinds
    return Rates(overhead, bandwidth, {f"{kind}/float32": ((1, speed),) for kind, speed in speeds.items()})


def wide(width: int = 64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(48, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))


def run(optimizer: lnb.LNB, steps: int, rows: int = 2000, seed: int = 0) -> lnb.LNB:
    generator = torch.Generator().manual_seed(seed)
    model = optimizer._model
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(rows, 48, generator=generator)).square().mean().backward()
        optimizer.step()
    return optimizer


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def held_bytes(optimizer: lnb.LNB) -> int:
    held = {id(t): t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in held.values())


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.25, 0.2, 0.1])
@pytest.mark.parametrize("settings", [{}, {"preset": "paper"}, {"trust_region": "layer", "block_size": None}], ids=str)
def test_the_predicted_overhead_stays_inside_the_budget(settings: dict[str, Any], limit: float) -> None:
    free = run(lnb.LNB(wide(), 0.01, rates=rates(), refresh_every=1, **settings), 1).plan()
    with quiet():
        plan = run(lnb.LNB(wide(), 0.01, rates=rates(), refresh_every=1, max_overhead=limit, **settings), 1).plan()
    assert free.overhead is not None
    assert plan.overhead is not None
    assert free.overhead > limit >= plan.overhead
    assert plan.overhead > limit / 4  # no cheaper than it has to be
    assert "max_overhead" in str(plan)


def test_hundreds_of_layers_are_planned_quickly() -> None:
    """Every choice is a change of one layer: no more of them are priced than layers times settings."""
    model = nn.ModuleList(nn.Linear(24, 8 + i % 5) for i in range(150))
    optimizer = lnb.LNB(model, 0.01, rates=rates(), refresh_every=1, max_overhead=0.02, max_state_bytes=10_000_000)
    torch.stack([layer(torch.ones(50, 24)).sum() for layer in model]).sum().backward()
    priced = 0
    original = time_budget.layer_cost

    def counted(*args: Any) -> Any:
        nonlocal priced
        priced += 1
        return original(*args)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(time_budget, "layer_cost", counted)
        optimizer.step()
    assert max(row.refresh_every for row in optimizer.plan()) > 1
    assert priced < 100 * 150


def test_a_budget_that_is_no_limit_changes_nothing() -> None:
    optimizers = [lnb.LNB(wide(), 0.01, rates=rates(), **extra) for extra in ({}, {"max_overhead": 1e6})]
    for optimizer in optimizers:
        run(optimizer, 4)
    assert same(*(snapshot(optimizer._model, optimizer) for optimizer in optimizers))
    assert [str(row.cells()) for row in optimizers[0].plan()] == [str(row.cells()) for row in optimizers[1].plan()]


def test_a_budget_that_cannot_be_met_is_named_with_what_can_be() -> None:
    optimizer = lnb.LNB(wide(), 0.01, rates=rates(overhead=1e-3), max_overhead=0.01)
    with pytest.warns(UserWarning, match=r"max_overhead=0\.01 cannot be met: .* predicted to add \d"):
        run(optimizer, 1)
    with quiet():
        run(optimizer, 2)  # once is enough
    assert {row.refresh_every for row in optimizer.plan()} == {80}


def test_layers_refresh_and_sample_as_planned() -> None:
    settings = {"trust_region": "layer", "refresh_every": 2, "b_s": 0.81}
    optimizer = run(lnb.LNB(wide(), 0.01, rates=rates(), max_overhead=0.04, **settings), 9, rows=4000)
    plan = {row.layer: row for row in optimizer.plan()}
    every = {name: row.refresh_every for name, row in plan.items()}
    assert max(every.values()) > 2
    assert any(row.sample_every > 1 for row in plan.values())
    for _ in range(8):
        seen = optimizer._step_index
        live = {block.name: block.captures[0].moments_on for block in optimizer._inventory.layers}
        assert live == {name: seen % n == 0 or (seen < n and seen & (seen - 1) == 0) for name, n in every.items()}
        for block in optimizer._inventory.layers:
            config = optimizer._config_of(block)
            if live[block.name]:
                assert block.captures[0].sample_every == plan[block.name].sample_every
            assert config.b_s ** (1 / config.refresh_every) == pytest.approx(0.9)  # forgets as fast as asked for
        run(optimizer, 1, rows=4000)


def test_rows_are_counted_over_micro_batches_and_uses_and_under_checkpointing() -> None:
    layer = nn.Linear(6, 6)
    optimizer = lnb.LNB(layer, 0.01, rates=rates())
    for _ in range(3):
        x = torch.randn(5, 4, 6)
        inner = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        layer(inner).sum().backward()
        with torch.no_grad():
            layer(x)
    optimizer.step()
    assert [row.samples for row in optimizer.plan()] == [3 * 2 * 20]
    optimizer.zero_grad()
    layer(torch.randn(7, 6)).sum().backward()
    optimizer.step()
    assert [row.samples for row in optimizer.plan()] == [120]  # those of the first step


def test_the_first_layer_has_no_gradient_of_its_input() -> None:
    optimizer = run(lnb.LNB(wide(), 0.01, rates=rates(), max_overhead=9.0), 1)
    assert {name: rows.input_grad for name, rows in optimizer._planner.samples.items()} == {
        "0": False,
        "2": True,
        "4": True,
    }


def test_rows_of_convolutions_and_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3, stride=2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).mT
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    net = Net()
    optimizer = lnb.LNB(net, 0.01, rates=rates())
    net(torch.randn(5, 2, 9, 9)).square().sum().backward()
    optimizer.step()
    assert {row.layer: row.samples for row in optimizer.plan()} == {
        "conv": 80,
        "attention.in_proj_weight": 80,
        "attention.out_proj": 80,
    }


def test_compiled_layers_count_their_rows_without_another_graph() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = lnb.LNB(net, 0.01, rates=rates(), refresh_every=1, max_overhead=1e6)
    graphs = 0

    def backend(graph: Any, example: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(net, backend=backend, fullgraph=True, dynamic=True)
    for rows in (10, 30, 20):
        optimizer.zero_grad()
        compiled(torch.randn(rows, 6)).square().sum().backward()
        optimizer.step()
    assert [row.samples for row in optimizer.plan()] == [10, 10]
    assert graphs == 1


def test_measured_overhead_is_reported_where_it_is_watched() -> None:
    optimizer = lnb.LNB(wide(), 0.01, rates=rates(), max_overhead=10.0)
    run(optimizer, 1)
    assert "overhead" not in optimizer.diagnostics()  # no time between two steps yet
    run(optimizer, 12)
    assert 0 < optimizer.diagnostics()["overhead"] < 50
    assert "overhead" not in run(lnb.LNB(wide(), 0.01), 3).diagnostics()
    assert "overhead" not in copy.deepcopy(optimizer).diagnostics()


def test_overhead_is_the_step_and_what_gathering_adds_to_the_passes() -> None:
    from lnb.reports.overhead import OverheadMeter

    meter = OverheadMeter(torch.device("cpu"))
    clock = {"now": 0.0}
    meter._clock.mark = lambda: clock["now"]  # type: ignore[method-assign]
    for index in range(41):
        gathered = index % 10 == 0
        clock["now"] += 3.0 if gathered else 1.0
        meter.enter()
        clock["now"] += 0.5 if gathered else 0.1
        meter.leave(gathered)
    # of ten steps: nine of 0.1, one of 0.5, and 2 more in the passes of one; the passes are 1
    assert meter.read() == pytest.approx((0.9 + 0.5 + 2.0) / 10)


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"preset": "paper", "refresh_every": 2}, {"trust_region": "spectral"}], ids=str
)
@pytest.mark.parametrize("share", [0.9, 0.6, 0.05])
def test_the_state_stays_inside_the_budget(settings: dict[str, Any], share: float) -> None:
    model = nn.Sequential(nn.Linear(48, 256), nn.LayerNorm(256), nn.Linear(256, 4))
    whole = held_bytes(run(lnb.LNB(copy.deepcopy(model), 0.01, **settings), 1))
    least = sum(4 * p.numel() + 4 for p in model.parameters()) * 2 + 4096
    limit = max(int(share * whole), least)
    optimizer = lnb.LNB(model, 0.01, max_state_bytes=limit, **settings)
    before = [p.clone() for p in model.parameters()]
    run(optimizer, 4)
    plan = optimizer.plan(rates())
    assert held_bytes(optimizer) == plan.state_bytes + plan.other_bytes
    assert held_bytes(optimizer) <= limit < whole
    assert "max_state_bytes" in str(plan)
    assert all(
        torch.isfinite(p).all() and not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)
    )


def test_memory_is_given_up_in_order() -> None:
    whole = lnb.LNB(wide(256), 0.01).plan().state_bytes
    stages = []
    for limit in range(whole, 0, -whole // 60):
        try:
            rows = lnb.LNB(wide(256), 0.01, max_state_bytes=limit).plan().rows
        except ValueError:
            break
        row = rows[1]
        averaged = "average" in row.statistics
        blocks = int(row.solver.split()[-1]) if "blocks" in row.solver else 256 if row.solver == "factor" else 0
        stages.append((blocks, averaged, row.solver == "arrow"))
    assert [s[2] for s in stages] == sorted(s[2] for s in stages)
    assert [s[1] for s in stages] == sorted((s[1] for s in stages), reverse=True)
    assert (64, True, False) in stages
    assert stages[-1][2]


def test_a_budget_below_any_state_names_the_least() -> None:
    with pytest.raises(ValueError, match=r"max_state_bytes=100 cannot be met: .* need at least (\d+) bytes") as raised:
        lnb.LNB(wide(), 0.01, max_state_bytes=100)
    least = int(str(raised.value).split("at least ")[1].split()[0])
    model = wide()
    optimizer = run(lnb.LNB(model, 0.01, max_state_bytes=least), 2)
    assert held_bytes(optimizer) == least
    with pytest.raises(ValueError, match="cannot be met"):
        lnb.LNB(wide(), 0.01, max_state_bytes=least - 1)


def test_groups_added_later_count_and_are_refused_beyond_the_budget() -> None:
    model = wide()
    first, second, third = ([*layer.parameters()] for layer in model if isinstance(layer, nn.Linear))
    state = lnb.LNB(copy.deepcopy(model), 0.01).plan().rows
    limit = state[0].state_bytes + 20_000
    optimizer = run(lnb.LNB(model, 0.01, params=first, max_state_bytes=limit), 2)
    optimizer.add_param_group({"params": second})
    run(optimizer, 2)
    plan = optimizer.plan(rates()).rows
    assert plan[0].state_bytes == state[0].state_bytes  # had its state already
    assert plan[1].state_bytes < state[1].state_bytes
    assert held_bytes(optimizer) <= limit
    with pytest.raises(ValueError, match="max_state_bytes"):
        optimizer.add_param_group({"params": [*third, nn.Parameter(torch.zeros(10_000))]})
    assert len(optimizer.param_groups) == 2
    run(optimizer, 2)


def test_a_group_added_between_backward_and_step_leaves_what_was_gathered() -> None:
    """It makes the state of the layers smaller; the step that was begun is made from the moments that are there."""
    twin, model = wide(256), wide(256)
    limit = lnb.LNB(copy.deepcopy(model), 0.01).plan().state_bytes + 10_000
    optimizers = [lnb.LNB(twin, 0.01), lnb.LNB(model, 0.01, max_state_bytes=limit)]
    for optimizer in optimizers:
        optimizer._model(torch.ones(20, 48).cumsum(0)).square().mean().backward()
    gathered = [capture.moments for block in optimizers[1]._inventory.layers for capture in block.captures]
    optimizers[1].add_param_group({"params": [nn.Parameter(torch.zeros(5_000))]})
    assert optimizers[1].plan().state_bytes < optimizers[0].plan().state_bytes
    kept = [capture.moments for block in optimizers[1]._inventory.layers for capture in block.captures]
    assert same(copied(kept), copied(gathered))
    for optimizer in optimizers:
        optimizer.step()
    factors = [
        [optimizer.state[block.weight]["factor"] for block in optimizer._inventory.layers] for optimizer in optimizers
    ]
    assert same(copied(factors[0]), copied(factors[1]))
    run(optimizers[1], 1)
    assert held_bytes(optimizers[1]) <= limit


def test_settings_of_the_new_optimizer_stand_where_nothing_was_chosen() -> None:
    saved = run(lnb.LNB(wide(), 0.01, refresh_every=5), 3).state_dict()
    optimizer = lnb.LNB(wide(), 0.01, refresh_every=3)
    optimizer.load_state_dict(saved)
    assert {row.refresh_every for row in run(optimizer, 3).plan(rates())} == {3}


def test_time_is_not_bought_with_memory_beyond_its_budget() -> None:
    """Conjugate gradients remember a second moment only where steps refresh it less often than they use it."""
    state = lnb.LNB(wide(), 0.01, "paper").plan().state_bytes
    optimizer = lnb.LNB(wide(), 0.01, "paper", rates=rates(), max_overhead=0.1, max_state_bytes=state)
    with pytest.warns(UserWarning, match="max_overhead"):
        run(optimizer, 2)
    assert held_bytes(optimizer) == state
    assert max(row.sample_every for row in optimizer.plan()) > 1


# -- the solver -------------------------------------------------------------------------------------------------------

AUTO = {"preset": "paper", "solver": "auto"}


def solvers(optimizer: lnb.LNB) -> dict[str, str]:
    return {block.name: optimizer._config_of(block).solver for block in optimizer._inventory.layers}


def test_auto_takes_the_cheapest_of_what_is_right() -> None:
    many, few = (run(lnb.LNB(wide(), 0.01, rates=rates(factor=1e3), **AUTO), 1, rows) for rows in (2000, 20))
    assert solvers(many) == {"0": "pcg", "2": "pcg", "4": "matrix_free"}  # its 4 outputs make products with rows cheap
    assert set(solvers(few).values()) == {"matrix_free"}
    dual = run(lnb.LNB(wide(), 0.01, rates=rates(), **AUTO), 1, 10)
    assert solvers(dual)["2"] == "dual"
    assert "10 samples are fewer than 64 inputs" in str(dual.plan())
    exact = run(lnb.LNB(wide(), 0.01, rates=rates(factor=1e12), **AUTO), 1, 2000)
    assert solvers(exact)["0"] == "cholesky"


@pytest.mark.parametrize(
    "settings",
    [
        {"refresh_every": 4},
        {"b_s": 0.5},
        {"trust_region": "spectral"},
        {"trust_region": "two_sided"},
    ],
    ids=str,
)
def test_auto_keeps_a_factor_where_moments_are_remembered_or_the_region_needs_it(settings: dict[str, Any]) -> None:
    optimizer = lnb.LNB(wide(), 0.01, **AUTO, **settings)
    plan = run(optimizer, 1).plan(rates())
    assert all(row.solver.startswith("factor") for row in plan)


def test_auto_takes_nothing_that_has_no_room() -> None:
    optimizer = lnb.LNB(nn.Linear(48, 64), 0.01, "paper", solver="auto")
    (block,) = optimizer._inventory.layers
    for room, solver in ((1e9, "dual"), (0.0, "pcg")):
        chosen = choose_solver(block, first_choice(optimizer.config), Samples(10), rates(), room, dual=True)
        assert chosen.config.solver == solver


def test_auto_makes_the_steps_of_the_solver_it_takes() -> None:
    for rows, solver, speeds in ((2000, "pcg", {"factor": 1e3}), (20, "matrix_free", {"factor": 1e3}), (9, "dual", {})):
        chosen = run(lnb.LNB(wide(), 0.01, rates=rates(**speeds), **AUTO), 4, rows)
        fixed = run(lnb.LNB(wide(), 0.01, "paper", solver=solver), 4, rows)
        assert solver in solvers(chosen).values()
        if set(solvers(chosen).values()) == {solver}:
            for a, b in zip(chosen._model.parameters(), fixed._model.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_relative_ridge_and_no_ridge_rule_solvers_out() -> None:
    relative = run(lnb.LNB(wide(), 0.01, rates=rates(factor=1e3), ridge_mode="relative", **AUTO), 1, 20)
    assert set(solvers(relative).values()) == {"pcg"}
    model = wide()
    for arguments in ({"ridge": 0.0}, {"params": [{"params": model.parameters(), "ridge": 0.0}]}):
        bare = run(lnb.LNB(model, 0.01, rates=rates(), **arguments, **AUTO), 1, 10)  # type: ignore[arg-type]
        assert "dual" not in solvers(bare).values()


# -- the same again ---------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "time": {"refresh_every": 2, "max_overhead": 0.15},
    "memory": {"max_state_bytes": 60_000},
    "both": {"refresh_every": 2, "max_overhead": 0.15, "max_state_bytes": 60_000},
    "auto": dict(AUTO),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_rates_give_equal_plans(case: str) -> None:
    plans = [run(lnb.LNB(wide(), 0.01, rates=rates(), **CASES[case]), 1, seed=seed).plan() for seed in (0, 1)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("wrap", ["compiled", "checkpointed"])
def test_what_was_chosen_for_a_wrapped_model_is_restored_without_the_wrapper(wrap: str) -> None:
    model = wide()
    if wrap == "compiled":
        optimizer = lnb.LNB(torch.compile(model, backend="eager"), 0.01, rates=rates(), **AUTO)  # type: ignore[arg-type]
    else:
        model[0] = checkpoint_wrapper(model[0])
        optimizer = lnb.LNB(model, 0.01, rates=rates(), **AUTO)
    run(optimizer, 2, 10)
    assert all("wrapped" not in row.layer and "orig" not in row.layer for row in optimizer.plan())
    other = lnb.LNB(wide(), 0.01, rates=rates(gram=1e15, matmul=1e13), **AUTO)
    other.load_state_dict(optimizer.state_dict())
    assert solvers(other) == solvers(optimizer)
    assert "dual" in solvers(other).values()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 5])
def test_what_was_chosen_is_saved_and_restored(case: str, steps: int) -> None:
    optimizer = run(lnb.LNB(wide(), 0.01, rates=rates(), **CASES[case]), steps)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other_device = rates(gram=1e15, matmul=1e13)  # would choose otherwise
    resumed = wide()
    resumed.load_state_dict(optimizer._model.state_dict())
    other = lnb.LNB(resumed, 0.01, rates=other_device, **CASES[case])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [row.cells()[:5] for row in other.plan()] == [row.cells()[:5] for row in optimizer.plan()]
    for each in (optimizer, other):
        run(each, 5, seed=7)
    assert same(snapshot(resumed, other), snapshot(optimizer._model, optimizer))


@pytest.mark.parametrize("case", CASES)
def test_copies_go_on_alike(case: str) -> None:
    optimizer = run(lnb.LNB(wide(), 0.01, rates=rates(), **CASES[case]), 3)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.plan() == optimizer.plan()


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": {"0": {"solver": "lu"}}},
        {"layers": {}, "rows": {}},
        {"rows": {"0": "many"}, "layers": {}, "decided": []},
        [],
        3,
    ],
    ids=str,
)
def test_a_damaged_plan_is_refused_and_nothing_changes(damage: Any) -> None:
    optimizer = run(lnb.LNB(wide(), 0.01, rates=rates(), max_overhead=0.2), 2)
    before = copied(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"lnb_plan=.* is not what LNB.state_dict\(\) writes"):
        optimizer.load_state_dict({**optimizer.state_dict(), "lnb_plan": damage})
    assert same(copied(optimizer.state_dict()), before)


def test_state_saved_without_a_plan_is_planned_anew() -> None:
    saved = run(lnb.LNB(wide(), 0.01, "paper"), 2).state_dict()
    del saved["lnb_plan"]
    optimizer = lnb.LNB(wide(), 0.01, "paper", rates=rates(), max_overhead=0.1)
    optimizer.load_state_dict(saved)
    run(optimizer, 5)
    assert max(row.refresh_every for row in optimizer.plan()) > 1


@pytest.mark.parametrize("settings", [{"max_overhead": 0.2}, {"max_state_bytes": 20_000}, dict(AUTO)], ids=str)
def test_convolutions_and_norms_train_under_budgets(settings: dict[str, Any]) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, 0.02, rates=rates(), **settings)
    data = batches(12)
    before = sum(loss_of(model, batch).item() for batch in data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(model, optimizer, data * 3)
    assert sum(loss_of(model, batch).item() for batch in data) < before
