"""The rule of ``step(loss=...)``: steps are shortened where the loss rises beyond its noise.

The gradients say most of what a loss does (:mod:`lnb.damping`), so the rule here is a safety net below the others. The loss of
every step is compared with the average of those before it; where it is more than :data:`DEVIATIONS` standard deviations above
that, the radius of every layer, the share of its region that it uses, is multiplied by :data:`SHORTEN` before the step is made.
From there the radii follow the gradients again. It is Levenberg and Marquardt's answer to a step that made the loss worse,
without their rejection of it: with batches, a loss that is high once proves nothing.

The averages decay by :data:`DECAY` per step, about ten steps, and are not used before :data:`OPENING` losses are known. All of
this is arithmetic on the device, so that no step waits for its loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lnb.context import LayerContext
from lnb.damping import LEAST_RADIUS
from lnb.statistics.arenas import Arenas
from lnb.statistics.running import bias_correction
from lnb.verdict import Verdict, on_device

DECAY = 0.9
DEVIATIONS = 3.0
SHORTEN = 0.7
OPENING = 10


def as_loss(loss: float | Tensor, device: torch.device) -> Tensor:
    """``loss`` as a tensor ``[]`` on ``device``; the host does not wait for it.

    Raises:
        TypeError: it is neither a real number nor a tensor of real numbers.
        ValueError: it is a tensor of more than one number, or of none.
    """
    if isinstance(loss, Tensor):
        if loss.is_complex() or loss.dtype == torch.bool:
            raise TypeError(f"step(): loss must be a real number, but has dtype {loss.dtype}; nothing was changed")
        if loss.numel() != 1:
            raise ValueError(
                f"step(): loss must be one number, but has shape {tuple(loss.shape)}; pass its mean. Nothing was changed"
            )
        return on_device(loss.detach().reshape(()).to(torch.promote_types(loss.dtype, torch.float32)), device)
    if isinstance(loss, bool) or not isinstance(loss, (int, float)):
        raise TypeError(f"step(): loss={loss!r} must be a number or a tensor of one; nothing was changed")
    return torch.tensor(float(loss), device=device)


def shorten_where_risen(contexts: list[LayerContext], loss: Tensor, verdict: Verdict, arenas: Arenas) -> None:
    """Shorten the radii of ``contexts`` where ``loss`` has risen, and update the averages from which that is told.

    State of a layer's weight: ``loss_count``, ``loss_mean`` and ``loss_square`` ``[]``, the losses seen and the averages, from
    zero, of the losses and of their squared distances from the average before. Layers without a radius have made no step, or
    are damped by another rule: they have none of these.

    Args:
        contexts: layers of any devices.
        loss: ``[]``.
        verdict: whether anything may change.
        arenas: where the states live.
    """
    with_radius = [each for each in contexts if "radius" in each.state]
    for device in dict.fromkeys(each.state["radius"].device for each in with_radius):
        members = [each for each in with_radius if each.state["radius"].device == device]
        states, shapes = [each.state for each in members], [()] * len(members)
        ok, like = verdict.on(device), members[0].state["radius"]
        radius = arenas.select("radius", states, shapes, like)
        count, mean, square = (
            arenas.select(key, states, shapes, like) for key in ("loss_count", "loss_mean", "loss_square")
        )
        most = torch.finfo(like.dtype).max ** 0.4  # an infinite average, or square, would never end
        now = on_device(loss, device).to(like.dtype).clamp(-most, most).expand(len(members))
        seen = count.read()
        past = bias_correction(DECAY, seen.clamp(min=1)).to(like.dtype)
        before = torch.where(seen > 0, mean.read() / past, now)
        risen = (seen >= OPENING) & (now - before > DEVIATIONS * (square.read() / past).sqrt())
        radius.write((radius.read() * torch.where(risen, SHORTEN, 1.0)).clamp(min=LEAST_RADIUS), ok)
        square.write(torch.lerp(square.read(), (now - before).square(), 1 - DECAY), ok)
        mean.write(torch.lerp(mean.read(), now, 1 - DECAY), ok)
        count.write(seen + 1, ok)
