"""LNB in Ray Train: two workers, whose model Ray wraps after the optimizer was made, do as one process with the joined batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lnb

pytest.importorskip("ray", reason="ray is not installed")
train = pytest.importorskip("ray.train", reason="ray[train] is not installed", exc_type=ImportError)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of this machine, without a dashboard and without reports to Ray's makers."""
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_two_workers_do_as_one_process_does(tmp_path: Path) -> None:
    from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

    def steps(rank: int, ranks: int, wrap: Any) -> nn.Module:  # travels by value: workers cannot import tests
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        optimizer = lnb.LNB(model, 0.05)
        model = wrap(model)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(16, 6, dtype=torch.float64, generator=generator)
            y = torch.randint(0, 3, (16,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rank::ranks]), y[rank::ranks]).backward()
            optimizer.step()
        return model

    def loop(settings: dict[str, str]) -> None:
        context = train.get_context()
        model = steps(context.get_world_rank(), context.get_world_size(), prepare_model)
        parameters = [parameter.detach() for parameter in model.parameters()]
        torch.save(parameters, f"{settings['folder']}/rank{context.get_world_rank()}.pt")

    TorchTrainer(
        loop,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=train.ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=train.RunConfig(storage_path=str(tmp_path), name="run"),
    ).fit()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(map(torch.equal, first, second))
    for got, expected in zip(first, steps(0, 1, lambda model: model).parameters(), strict=True):
        torch.testing.assert_close(got, expected.detach(), rtol=1e-10, atol=1e-12)
