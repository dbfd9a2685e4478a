"""LNB in Lightning: exact steps, clipping, precisions, two ranks, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.training import data, expected, loader
from optimizer.small_models import batches, equal_parameters, loss_of, mixed, train
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, DistributedSampler

import lnb
from lnb.integrations.lightning import optimizers_of
from lnb.integrations.watch import Watch
from lnb.reports.watch_file import NAME, Tail

lightning = pytest.importorskip("lightning", reason="lightning is not installed")


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.net = mixed()
        self.settings = settings

    def training_step(self, batch: Any, index: int) -> Tensor:
        return loss_of(self.net, batch)

    def configure_optimizers(self) -> Any:
        return optimizers_of(self, **self.settings)


def fitted(
    model: Any,
    folder: Path,
    epochs: int = 1,
    resumed: dict[str, Any] | None = None,
    loaders: Any = loader,
    **settings: Any,
) -> Any:
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(model, None if loaders is None else loaders(), **(resumed or {}))
    return trainer


def test_each_step_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    model = Module()
    fitted(model, tmp_path)
    assert equal_parameters(model.net, expected())


def test_a_watch_that_the_module_opens(tmp_path: Path) -> None:
    class Watched(Module):
        def on_train_start(self) -> None:
            self.watch = Watch(self.optimizers().optimizer, tmp_path, every=2, tensorboard=False)

        def on_train_end(self) -> None:
            self.watch.close()

    model = Watched()
    fitted(model, tmp_path)
    records = Tail(tmp_path / NAME).read()
    assert [record.step for record in records] == [2, 4]
    assert records[1].layers.keys() == {"net.0", "net.3", "net.5"}
    assert equal_parameters(model.net, expected())


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_resumed_training_is_uninterrupted_training(tmp_path: Path, weights_only: bool | None) -> None:
    schedule = {"schedule": lambda optimizer: ExponentialLR(optimizer, 0.9)}
    fitted(Module(**schedule), tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    whole, resumed = Module(**schedule), Module(**schedule)
    fitted(whole, tmp_path, 2)
    fitted(resumed, tmp_path, 2, {"ckpt_path": tmp_path / "last.ckpt", "weights_only": weights_only})
    assert equal_parameters(whole, resumed)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_schedulers_interval(tmp_path: Path, interval: str) -> None:
    model = Module(schedule=lambda optimizer: ExponentialLR(optimizer, 0.5), interval=interval, lr=0.08)
    trainer = fitted(model, tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.08 * (0.5**4 if interval == "step" else 0.5))


def test_an_unknown_interval_is_an_error() -> None:
    with pytest.raises(ValueError, match="interval='day' must be 'step' or 'epoch'"):
        optimizers_of(mixed(), interval="day")


def test_gradients_are_clipped_before_the_step(tmp_path: Path) -> None:
    model = Module(preset="paper", lr=0.05)  # whose steps depend on the size of the gradients
    fitted(model, tmp_path, gradient_clip_val=1e-3)
    clipped = mixed()
    optimizer = lnb.LNB(clipped, preset="paper", lr=0.05)
    for batch in batches(4):
        optimizer.zero_grad()
        loss_of(clipped, batch).backward()
        nn.utils.clip_grad_norm_(clipped.parameters(), 1e-3)
        optimizer.step()
    assert equal_parameters(model.net, clipped)
    assert not equal_parameters(model.net, expected(preset="paper", lr=0.05))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32), ("64-true", torch.float64)]
)
def test_precisions(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    model = Module()
    trainer = fitted(model, tmp_path, precision=precision)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert trainer.optimizers[0].diagnostics() == {"steps": 4, "skipped_steps": 0}
    reference = mixed().to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        optimizer = lnb.LNB(reference)
    for x, y in batches(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = loss_of(reference, (x, y))
        loss.backward()
        optimizer.step()
    assert equal_parameters(model.net, reference)


def test_manual_optimization(tmp_path: Path) -> None:
    class Manual(Module):
        automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, batch))
            optimizer.step()

    model = Manual()
    fitted(model, tmp_path)
    assert equal_parameters(model.net, expected())


def test_two_ranks(tmp_path: Path) -> None:
    """Each rank sees half of every batch of the joined training."""

    class Halves(Module):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(data(), batch_size=16, sampler=DistributedSampler(data(), shuffle=False))

    model = Halves().double()
    fitted(model, tmp_path, loaders=None, devices=2, strategy="ddp_fork", use_distributed_sampler=False)
    joined = mixed().double()
    train(joined, lnb.LNB(joined), DataLoader(data(), batch_size=32))
    for p, q in zip(model.net.parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(p, q)
