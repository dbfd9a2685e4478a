"""The models and data modules that Lightning's own tests are made of, through all that a Trainer does, with LNB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

lightning = pytest.importorskip("lightning", reason="lightning is not installed")

from lightning.pytorch.demos import boring_classes as boring

import lnb
from lnb.integrations.lightning import optimizers_of


def with_lnb(base: Any, **settings: Any) -> Any:
    """``base`` with LNB in place of its optimizer."""

    class Model(base):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return optimizers_of(
                self, lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1), "epoch", lr=0.1, **settings
            )

    torch.manual_seed(0)
    return Model()


def trainer(folder: Path, **settings: Any) -> Any:
    return lightning.Trainer(
        **{
            "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1,
            "enable_checkpointing": False, "default_root_dir": folder, "limit_train_batches": 6, "limit_val_batches": 2,
            **settings,
        }
    )  # fmt: skip


def optimizer_of(fitted: Any) -> lnb.LNB:
    (optimizer,) = fitted.optimizers
    assert isinstance(optimizer, lnb.LNB)
    return optimizer


@pytest.mark.parametrize("base", [boring.BoringModel, boring.ManualOptimBoringModel, boring.DemoModel])
def test_fit(base: Any, tmp_path: Path) -> None:
    model = with_lnb(base)
    before = [p.detach().clone() for p in model.parameters()]
    loop = trainer(tmp_path)
    loop.fit(model, boring.BoringModel().train_dataloader())
    assert optimizer_of(loop).diagnostics() == {"steps": 6, "skipped_steps": 0}
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_every_stage_with_a_data_module(tmp_path: Path) -> None:
    model, data = with_lnb(boring.BoringModel), boring.BoringDataModule()
    loop = trainer(tmp_path, max_epochs=2)
    loop.fit(model, datamodule=data)
    weight = model.layer.weight.detach().clone()
    loop.validate(model, datamodule=data, verbose=False)
    loop.test(model, datamodule=data, verbose=False)
    assert len(loop.predict(model, datamodule=data)) == 64
    assert torch.equal(model.layer.weight, weight)
    assert optimizer_of(loop).param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)


def test_accumulation_steps_once_for_several_batches(tmp_path: Path) -> None:
    loop = trainer(tmp_path, accumulate_grad_batches=3)
    loop.fit(with_lnb(boring.BoringModel))
    assert optimizer_of(loop).diagnostics()["steps"] == 2


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping(algorithm: str, tmp_path: Path) -> None:
    norms = []

    class Watched(boring.BoringModel):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            norms.extend(p.grad.abs().max().item() for p in self.parameters() if p.grad is not None)

    loop = trainer(tmp_path, gradient_clip_val=1e-2, gradient_clip_algorithm=algorithm)
    loop.fit(with_lnb(Watched))
    assert optimizer_of(loop).diagnostics()["steps"] == 6
    assert norms
    assert max(norms) <= 1e-2 * (1 + 1e-6)


def test_callbacks_that_average_and_save(tmp_path: Path) -> None:
    """A checkpoint for every epoch, averaged weights, and a run that goes on from the last one."""
    callbacks = lightning.pytorch.callbacks

    def made(epochs: int) -> Any:
        saves = callbacks.ModelCheckpoint(dirpath=tmp_path, save_last=True)
        averages = callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
        return trainer(tmp_path, enable_checkpointing=True, callbacks=[saves, averages], max_epochs=epochs)

    model = with_lnb(boring.BoringModel)
    loop = made(3)
    loop.fit(model)
    assert optimizer_of(loop).diagnostics()["steps"] == 18
    loop = trainer(tmp_path, max_epochs=4)
    loop.fit(with_lnb(boring.BoringModel), ckpt_path=tmp_path / "last.ckpt")
    assert optimizer_of(loop).diagnostics()["steps"] == 6
    assert all(p.isfinite().all() for p in model.parameters())


def test_layers_that_are_frozen_and_thawed(tmp_path: Path) -> None:
    """``BaseFinetuning`` freezes a part and adds it to the optimizer as a group of its own later."""

    class Thawed(lightning.pytorch.callbacks.BaseFinetuning):  # type: ignore[misc, name-defined]
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.trunk)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.trunk, optimizer, lr=0.05)

    class Deep(boring.BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.trunk(x).tanh())

        def configure_optimizers(self) -> Any:
            return lnb.LNB(self, params=[p for p in self.parameters() if p.requires_grad])

    model = Deep()
    before = model.trunk.weight.detach().clone()
    loop = trainer(tmp_path, callbacks=[Thawed()])
    loop.fit(model)
    assert torch.equal(model.trunk.weight, before)
    loop = trainer(tmp_path, callbacks=[Thawed()], max_epochs=2)
    loop.fit(model)
    assert not torch.equal(model.trunk.weight, before)
    assert [group["lr"] for group in optimizer_of(loop).param_groups] == [0.1, 0.05]
