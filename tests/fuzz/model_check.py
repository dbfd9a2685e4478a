"""What must hold of a model that LNB trains, whatever it is made of."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lnb


def passes(model: nn.Module, batch: list[Tensor], seed: int) -> list[Tensor]:
    """Forward and backward passes of the micro-batches; returns the outputs."""
    torch.manual_seed(seed)
    outputs = []
    for x in batch:
        y = model(x)
        if y.requires_grad:
            (y.double().square().mean() + y.double().sum() / 7).backward()
        outputs.append(y.detach())
    return outputs


def differs(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are not the same to the bit."""
    if a is None or b is None:
        return a is not b
    return a.dtype != b.dtype or not torch.equal(a, b)


def unlike(a: nn.Module, b: nn.Module) -> list[str]:
    """The parameters and buffers that differ."""
    others = b.state_dict()
    return [
        name for name, value in a.state_dict().items() if isinstance(value, Tensor) and differs(value, others[name])
    ]


def check_model(
    make: Callable[[], nn.Module], batches: list[list[Tensor]], options: Callable[[nn.Module], Any], save_at: int
) -> str | None:
    """Train a model, and the same unattached one beside it; returns what is wrong, or None.

    Outputs and gradients are those of the unattached model to the bit; parameters stay finite; frozen ones stay as they are
    and get no state; and an optimizer that is saved and loaded after step ``save_at`` goes on to the bit.
    """
    model, plain = make(), make()  # PyTorch cannot copy a pruned one
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = lnb.LNB(model, **options(model))
    resumed: tuple[nn.Module, lnb.LNB] | None = None
    for step, batch in enumerate(batches):
        plain.load_state_dict(model.state_dict())
        plain.zero_grad()
        model.zero_grad()
        optimizer.zero_grad()
        expected = passes(plain, batch, step)
        found = passes(model, batch, step)
        if any(map(differs, expected, found)):
            return f"step {step}: the outputs of the attached model differ"
        ours = dict(model.named_parameters())
        for name, value in plain.named_parameters():
            if differs(value.grad, ours[name].grad):
                return f"step {step}: the gradient of {name} differs"
        optimizer.step()
        for name, value in ours.items():
            if not bool(value.isfinite().all()):
                return f"step {step}: {name} is not finite"
            if not value.requires_grad and (optimizer.state.get(value) or differs(value, start[name])):
                return f"step {step}: {name} is frozen and has moved, or has state"
        if resumed is not None:
            other, other_optimizer = resumed
            other.zero_grad()
            other_optimizer.zero_grad()
            passes(other, batch, step)
            other_optimizer.step()
            if wrong := unlike(model, other):
                return f"step {step}: {', '.join(wrong)} of the resumed model differ"
        if step == save_at:
            file = io.BytesIO()
            torch.save((model.state_dict(), optimizer.state_dict()), file)
            file.seek(0)
            of_model, of_optimizer = torch.load(file, weights_only=False)
            other = make()
            other.load_state_dict(of_model)
            other_optimizer = lnb.LNB(other, **options(other))
            other_optimizer.load_state_dict(of_optimizer)
            resumed = other, other_optimizer
    return None
