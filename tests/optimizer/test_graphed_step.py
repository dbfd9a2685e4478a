"""Training steps from captured graphs: with graphs that a CPU can record and replay, to the bit what usual steps give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lnb
from lnb import graphs
from lnb.graphs import GraphedStep
from lnb_kernels import fused_step


class Recorded(TorchDispatchMode):
    """A graph of the operators that ran inside, replayed on the same memory: what a CUDA graph does with kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, former in self.calls:
            if "empty" in str(func):
                continue
            result = func(*args, **kwargs)
            for own, fresh in zip(tree_leaves(former), tree_leaves(result), strict=True):
                if isinstance(own, Tensor) and own.data_ptr() != fresh.data_ptr():
                    own.copy_(fresh)


class RecordedGraphs:
    """Recorded graphs in place of CUDA's. What is recorded runs at once, so that it is undone first."""

    def __init__(self) -> None:
        self.made: list[Recorded] = []

    def new(self) -> Recorded:
        self.made.append(Recorded())
        return self.made[-1]

    @contextmanager
    def capture(self, graph: Recorded) -> Iterator[None]:
        with graph:
            yield
        graph.replay = skipping_once(graph)  # type: ignore[method-assign]

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield


def skipping_once(graph: Recorded) -> Any:
    """On a CPU, what was recorded has been done already: the first replay is that."""
    usual, calls = Recorded.replay, []

    def replay() -> None:
        calls.append(1)
        if len(calls) > 1:
            usual(graph)

    return replay


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 8, bias=False), nn.Tanh(), nn.Linear(8, 2)
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 2, generator=generator)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are fused, by plain PyTorch, and the verdict stays on the device."""
    monkeypatch.setattr(fused_step, "available", lambda device: True)
    usual = lnb.context.Verdict

    class Unknown(usual):  # type: ignore[misc, valid-type]
        def __init__(self, ok: Tensor, wait: bool = False) -> None:
            super().__init__(ok, wait)
            self.known = self.rejected = False
            self._ok = ok

    monkeypatch.setattr(lnb.context, "Verdict", Unknown)
    monkeypatch.setattr(lnb.context, "known_finite", lambda _: None)  # what the host knows at once


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("settings", [{}, {"staggered": False}, {"refresh_every": 4}])
def test_replayed_steps_are_the_usual_ones_to_the_bit(settings: dict[str, Any]) -> None:
    mine, usual = net(), net()
    settings = {"lr": 0.05, "block_size": 6, "products": "tf32x3", **settings}
    optimizer, other = lnb.LNB(mine, **settings), lnb.LNB(usual, **settings)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(mine(x), y)

    recorded = RecordedGraphs()
    step = GraphedStep(optimizer, loss, batch(0), recorded)
    for group in other.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 40) for o in (optimizer, other)]
    for seed in range(36):
        x, y = batch(seed)
        value = step(x, y)
        other.zero_grad()
        expected = nn.functional.mse_loss(usual(x), y)
        expected.backward()
        other.step()
        assert torch.equal(value, expected), seed
        for scheduler in schedulers:
            scheduler.step()
        for (name, one), (_, two) in zip(mine.named_parameters(), usual.named_parameters(), strict=True):
            assert torch.equal(one, two), (seed, name)
    assert optimizer.diagnostics()["steps"] == 36
    assert optimizer.diagnostics()["skipped_steps"] == other.diagnostics()["skipped_steps"] == 0
    assert len(recorded.made) == 2  # ordinary steps and refreshes
    saved, expected_state = optimizer.state_dict(), other.state_dict()
    assert saved["lnb_step"] == expected_state["lnb_step"] == 36


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_step_with_nan_changes_nothing_and_is_counted() -> None:
    model = net()
    optimizer = lnb.LNB(model, lr=0.05, block_size=6, refresh_every=2)
    step = GraphedStep(optimizer, lambda x, y: nn.functional.mse_loss(model(x), y), batch(0), RecordedGraphs())
    for seed in range(9):
        step(*batch(seed))
    before = [parameter.clone() for parameter in model.parameters()]
    x, y = batch(9)
    for _ in range(2):  # an ordinary step and a refresh
        step(x.fill_(torch.nan), y)
    assert all(map(torch.equal, before, model.parameters()))
    assert optimizer.diagnostics()["skipped_steps"] == 2


def test_bad_batches_and_settings() -> None:
    model = net()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(x), y)

    with pytest.raises(ValueError, match="the model is on cpu; CUDA graphs need it on a CUDA device"):
        lnb.graphed_step(lnb.LNB(model), loss, batch(0))
    lnb.detach(model)
    for setting in ({"strict": True}, {"sample_every": 2}, {"max_overhead": 0.5}):
        with pytest.raises(ValueError, match=f"graphed_step: {next(iter(setting))}"):
            GraphedStep(lnb.LNB(model, **setting), loss, batch(0), RecordedGraphs())  # type: ignore[arg-type]
        lnb.detach(model)
    optimizer = lnb.LNB(model)
    with pytest.raises(ValueError, match=r"example\[1\] is on meta"):
        GraphedStep(optimizer, loss, [torch.zeros(2), torch.zeros(2, device="meta")], RecordedGraphs())
    step = GraphedStep(optimizer, loss, batch(0), RecordedGraphs())
    with pytest.raises(ValueError, match="the batch has 1 tensors"):
        step(batch(0)[0])
    with pytest.raises(
        ValueError, match=r"tensor 1 of the batch is torch.float32 \(15, 2\); the example has torch.float32 \(16, 2\)"
    ):
        step(batch(0)[0], batch(0)[1][1:])
    assert optimizer.step_index == 0
    assert graphs.graphed_step is lnb.graphed_step


def test_a_capture_of_ones_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replays would never refresh the second moments."""
    net = nn.Linear(4, 3)
    optimizer = lnb.LNB(net)
    net(torch.randn(8, 4)).square().mean().backward()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    monkeypatch.setattr("lnb.optimizer.is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"lnb\.graphed_step"):
        optimizer.step()
    assert all(map(torch.equal, before, net.parameters()))
    assert optimizer.step_index == 0
    with optimizer.captured():
        optimizer.step()
    assert optimizer.step_index == 1
