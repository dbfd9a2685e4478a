"""LNB with accelerate: exact steps, accumulation, and resuming from its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from integrations.training import expected, loader
from optimizer.small_models import batches, equal_parameters, loss_of, mixed, train
from torch.optim.lr_scheduler import ExponentialLR

import lnb
from lnb.integrations.accelerate import prepare
from lnb.integrations.watch import Watch
from lnb.reports.watch_file import NAME, Tail

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerators of one process share their state."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def run(accelerator: Any, model: Any, optimizer: Any, batches: Any, scheduler: Any = None) -> None:
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()


def test_prepared_by_hand() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = mixed()
    model, optimizer, batches = accelerator.prepare(model, lnb.LNB(model), loader())
    run(accelerator, model, optimizer, batches)
    assert equal_parameters(accelerator.unwrap_model(model), expected())


def test_a_watch_logs_the_steps_that_are_made(tmp_path: Path) -> None:
    """One for each two micro-batches; of the optimizer inside the prepared one, which is refused by name."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, batches = accelerator.prepare(mixed(), lnb.LNB(mixed()), loader())
    with pytest.raises(TypeError, match=r"not AcceleratedOptimizer; .* pass the one inside: optimizer\.optimizer"):
        Watch(optimizer, tmp_path)
    model = mixed()
    model, optimizer, batches = accelerator.prepare(model, lnb.LNB(model), loader())
    with Watch(optimizer.optimizer, tmp_path, every=1, tensorboard=False):
        run(accelerator, model, optimizer, batches)
    records = Tail(tmp_path / NAME).read()
    assert [record.step for record in records] == [1, 2]
    assert records[1].layers.keys() == {"0", "3", "5"}
    assert records[1].layers["5"]["gain"] > 0


def test_the_function_prepares_a_scheduler_too() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, batches, scheduler = prepare(
        accelerator, mixed(), loader(), schedule=lambda optimizer: ExponentialLR(optimizer, 0.5), lr=0.05
    )
    run(accelerator, model, optimizer, batches, scheduler)
    by_hand = mixed()
    own = lnb.LNB(by_hand, lr=0.05)
    for batch in loader():
        train(by_hand, own, [batch])
        own.param_groups[0]["lr"] *= 0.5
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 / 16)
    assert equal_parameters(accelerator.unwrap_model(model), by_hand)


def test_accumulated_micro_batches_are_one_batch() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, batches = prepare(accelerator, mixed().double(), loader())
    run(accelerator, model, optimizer, batches)
    whole = mixed().double()
    first, second, third, fourth = list(loader())
    joined = [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in ((first, second), (third, fourth))]
    train(whole, lnb.LNB(whole), joined)  # type: ignore[arg-type]
    for p, q in zip(accelerator.unwrap_model(model).parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_saved_and_loaded_states_go_on_as_if_nothing_was(tmp_path: Path) -> None:
    def prepared(seed: int) -> tuple[Any, ...]:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True)
        model = mixed()
        with torch.no_grad():
            model[5].bias.fill_(seed)  # what is loaded replaces it
        return accelerator, *prepare(accelerator, model, loader())

    accelerator, model, optimizer, batches = prepared(0)
    run(accelerator, model, optimizer, batches)
    accelerator.save_state(str(tmp_path))
    run(accelerator, model, optimizer, batches)
    accelerator, resumed, optimizer, batches = prepared(1)
    accelerator.load_state(str(tmp_path))
    run(accelerator, resumed, optimizer, batches)
    assert equal_parameters(resumed, model)


@pytest.fixture
def fsdp2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An accelerator of one rank that shards models. accelerate does so on GPUs alone: its state is told that this is one."""
    from accelerate.utils import DistributedType

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    accelerator = accelerate.Accelerator(cpu=True)
    for state in (accelerate.PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=16, reshard_after_forward=True
    )
    yield accelerator
    dist.destroy_process_group()


def test_shards_that_accelerate_makes_and_puts_into_the_optimizer(fsdp2: Any, tmp_path: Path) -> None:
    """Its ``prepare`` exchanges the parameters of the model, and of the optimizer's groups; states are saved and loaded."""
    model = mixed()
    model, optimizer = fsdp2.prepare(model, lnb.LNB(model))
    run(fsdp2, model, optimizer, batches(2))
    fsdp2.save_state(str(tmp_path / "state"))
    run(fsdp2, model, optimizer, batches(4)[2:])
    rows = {row.name: row.metric for row in optimizer.optimizer.coverage().rows}
    assert [rows[name] for name in ("0.weight", "3.weight", "5.weight")] == ["second moment"] * 3
    ended = [parameter.full_tensor().clone() for parameter in model.parameters()]
    for got, parameter in zip(ended, expected(process_group=None).parameters(), strict=True):
        torch.testing.assert_close(got, parameter, rtol=1e-3, atol=1e-4)
    fsdp2.load_state(str(tmp_path / "state"))
    run(fsdp2, model, optimizer, batches(4)[2:])
    for got, again in zip(ended, model.parameters(), strict=True):
        assert torch.equal(got, again.full_tensor())
