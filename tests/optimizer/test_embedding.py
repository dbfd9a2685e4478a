"""``nn.Embedding`` beside claimed layers: every option of it trains by the rule for other parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import copied, same, snapshot
from torch import Tensor, nn

import lnb

WORDS, WIDTH = 9, 6


class Tagger(nn.Module):
    """Tokens to tokens, one by one, with an output layer that may have the embedding's weight."""

    def __init__(self, tied: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(WORDS, WIDTH, **options)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(tokens))))


def loss_of(model: nn.Module, seed: int) -> Tensor:
    tokens = torch.randint(0, WORDS - 1, (5, 7), generator=torch.Generator().manual_seed(seed))
    return F.cross_entropy(model(tokens).flatten(0, 1), ((tokens + 1) % WORDS).flatten())


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    loss = torch.zeros(())
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


OPTIONS = [{}, {"padding_idx": 3}, {"max_norm": 1.5}, {"scale_grad_by_freq": True}, {"tied": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_passes_are_those_of_an_unattached_model(options: dict[str, Any]) -> None:
    plain = Tagger(**options)
    model = copy.deepcopy(plain)
    optimizer = lnb.LNB(model)
    for seed in range(3):
        plain.load_state_dict(model.state_dict())
        for module in (plain, model):
            module.zero_grad()
            loss_of(module, seed).backward()
        for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), name
        optimizer.step()
    assert optimizer.diagnostics() == {"steps": 3, "skipped_steps": 0}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_follows_the_rule_for_other_parameters(options: dict[str, Any]) -> None:
    """The first step of Adam's rule moves every entry with a gradient by the rate, and none of another."""
    model = Tagger(**options)
    optimizer = lnb.LNB(model, lr=0.1, weight_decay=0.0)
    coverage = optimizer.coverage()
    assert coverage["embedding.weight"].metric == "adamw"
    assert ("head.weight" in dict(model.named_parameters())) == ("tied" not in options)
    loss_of(model, 0).backward()
    before = copied(model.embedding.weight)
    gradient = copied(model.embedding.weight.grad)
    optimizer.step()
    moved = (model.embedding.weight - before).detach()
    rate = 0.1 * optimizer.config.others_lr
    torch.testing.assert_close(moved, -rate * gradient.sign(), rtol=1e-3, atol=1e-5)
    if "padding_idx" in options:
        assert not moved[3].any()
    assert not moved[WORDS - 1].any() or "tied" in options  # a token that was not there
    first = fit(model, optimizer, 1)
    assert fit(model, optimizer, 60) < first / 2


def test_a_tied_output_layer_is_not_claimed() -> None:
    model = Tagger(tied=True)
    coverage = lnb.LNB(model).coverage()
    assert [row.name for row in coverage] == ["embedding.weight", "hidden.weight", "hidden.bias"]
    assert "shared with a layer that is not claimed: Embedding is not claimed" in coverage["embedding.weight"].reason


def test_sparse_gradients_are_refused_by_name() -> None:
    model = Tagger(sparse=True)
    optimizer = lnb.LNB(model)
    loss_of(model, 0).backward()
    before = snapshot(model, optimizer)
    with pytest.raises(TypeError, match=r"a gradient of shape \(9, 6\) is sparse"):
        optimizer.step()
    assert same(snapshot(model, optimizer), before)
    model = Tagger(sparse=True)  # the remedy: another optimizer for it
    dense = [p for name, p in model.named_parameters() if not name.startswith("embedding")]
    optimizers = [lnb.LNB(model, params=dense), torch.optim.SparseAdam(model.embedding.parameters(), lr=0.02)]
    first = float(loss_of(model, 0).detach())
    for step in range(40):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert float(loss_of(model, 0).detach()) < first / 2
