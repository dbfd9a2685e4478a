"""LNB with adapters: what is frozen costs nothing, what was added is claimed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lnb


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


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_adapters_of_moments_are_as_peft_makes_them(method: str) -> None:
    """Both halves of the split weight, by whole moments of one batch: PEFT scales every batch by its largest number."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    corda = pytest.importorskip("peft.tuners.lora.corda")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(40, 6) + 0.5
    ours = lnb.moments.corda(model[0].weight, lnb.gather_moments(model, [x])["0"], rank=2, method=method)
    config = peft.LoraConfig(
        r=2, lora_alpha=2, target_modules=["0"], init_lora_weights="corda",
        corda_config=peft.tuners.lora.config.CordaConfig(corda_method=method),
    )  # fmt: skip
    corda.preprocess_corda(model, config, run_model=lambda: model(x))
    theirs = peft.get_peft_model(model, config).base_model.model[0]
    product = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
    torch.testing.assert_close(ours.B @ ours.A, product.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.residual, theirs.base_layer.weight.detach(), rtol=1e-4, atol=1e-5)
