"""LNB in other people's trainers: each must train exactly as a plain loop does, or as its own rules say."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import batches, equal_parameters, loss_of, mixed, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lnb


def _data() -> TensorDataset:
    x, y = zip(*batches(4), strict=True)
    return TensorDataset(torch.cat(x), torch.cat(y))


def _expected() -> nn.Module:
    model = mixed()
    train(model, lnb.LNB(model), batches(4))
    return model


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    model = mixed()
    model, optimizer, loader = accelerator.prepare(model, lnb.LNB(model), DataLoader(_data(), batch_size=16))
    for batch in loader:
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, batch))
        optimizer.step()
    assert equal_parameters(accelerator.unwrap_model(model), _expected())


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = mixed()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> lnb.LNB:
            return lnb.LNB(self)

    def fitted(model: Any, epochs: int, **resumed: Any) -> Any:
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, DataLoader(_data(), batch_size=16), **resumed)
        return trainer

    model = Module()
    trainer = fitted(model, 1)
    assert equal_parameters(model.net, _expected())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    whole, resumed = Module(), Module()
    fitted(whole, 2)
    fitted(resumed, 2, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert equal_parameters(whole, resumed)


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mixed()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.net(x), labels)}

    model = Classifier()
    optimizer = lnb.LNB(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=16, num_train_epochs=1, use_cpu=True, report_to=[],
        save_strategy="no", max_grad_norm=0.0, lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in _data()]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    trainer.train()
    assert optimizer.diagnostics() == {"steps": 4, "skipped_steps": 0}
    for p, q in zip(model.net.parameters(), _expected().parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.fixture
def timm_scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``timm.scheduler`` alone: it needs only torch, and ``import timm`` a torchvision of just this torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed")
    package = types.ModuleType("timm")
    package.__path__ = list(spec.submodule_search_locations or ())
    monkeypatch.setitem(sys.modules, "timm", package)
    yield importlib.import_module("timm.scheduler")
    for name in [name for name in sys.modules if name.startswith("timm.")]:
        del sys.modules[name]


def test_timms_layer_decay_is_applied_once(timm_scheduler: Any) -> None:
    model = mixed()
    groups: list[dict[str, Any]] = [  # as timm.optim.param_groups_layer_decay writes them
        {"params": [model[0].weight], "lr_scale": 0.25, "weight_decay": 0.1},
        {"params": [model[0].bias], "lr_scale": 0.25, "weight_decay": 0.0},
        {"params": [model[3].weight, model[5].weight], "lr_scale": 0.5, "weight_decay": 0.1},
        {"params": [*model[4].parameters(), model[5].bias], "lr_scale": 1.0, "weight_decay": 0.0},
    ]
    scales = [group["lr_scale"] for group in groups]
    optimizer = lnb.LNB(model, 0.08, params=groups)
    scheduler = timm_scheduler.CosineLRScheduler(optimizer, t_initial=4)
    other = mixed()
    names = {parameter: name for name, parameter in model.named_parameters()}
    own = [{"params": [other.get_parameter(names[p]) for p in group["params"]], "weight_decay": group["weight_decay"]}
           for group in groups]  # fmt: skip
    by_hand = lnb.LNB(other, params=own)
    for step, batch in enumerate(batches(3)):
        lrs = [group["lr"] for group in optimizer.param_groups]
        assert lrs == pytest.approx([max(lrs) * scale / max(scales) for scale in scales])
        for group, lr in zip(by_hand.param_groups, lrs, strict=True):
            group["lr"] = lr
        train(model, optimizer, [batch])
        train(other, by_hand, [batch])
        scheduler.step(step + 1)
    assert equal_parameters(model, other)


class Adapted(nn.Module):
    """A frozen layer and the product of two narrow ones, as LoRA adds it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(6, 5).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.lora_b(self.lora_a(x))
        return out


def _adapts(model: nn.Module, frozen: str, claimed: list[str]) -> None:
    optimizer = lnb.LNB(model)
    assert optimizer.coverage()[frozen].metric == "none"
    assert all(optimizer.coverage()[name].metric == "second moment" for name in claimed)
    base = model.get_parameter(frozen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :5]).square().mean()
        loss.backward()
        layer = model.get_submodule(frozen.rpartition(".")[0])
        assert not any(capture.gathered for capture in layer._lnb_captures.values())
        optimizer.step()
        losses.append(loss.item())
    assert base not in optimizer.state
    assert losses[-1] < losses[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(claimed)


def test_adapters_are_claimed_and_frozen_layers_cost_nothing() -> None:
    _adapts(Adapted(), "base.weight", ["lora_a.weight", "lora_b.weight"])


def test_peft() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(6, 5)), peft.LoraConfig(r=2, target_modules=["0"], lora_dropout=0.0)
    )
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    _adapts(model, next(name for name, p in model.named_parameters() if name.endswith("base_layer.weight")), names)


def test_adapters_of_moments_go_into_peft() -> None:
    """``lnb.moments.corda`` in the layout of LoRA: the wrapped model computes what the model did."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(20, 6)
    before = model(x).detach()
    adapter = lnb.moments.corda(model[0].weight, lnb.gather_moments(model, [x])["0"], rank=2)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], lora_dropout=0.0))
    layer = wrapped.base_model.model[0]
    with torch.no_grad():
        layer.base_layer.weight.copy_(adapter.residual)
        layer.lora_A["default"].weight.copy_(adapter.A)
        layer.lora_B["default"].weight.copy_(adapter.B)
    torch.testing.assert_close(wrapped(x), before)
