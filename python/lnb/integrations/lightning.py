"""LNB in a ``LightningModule``.

    from lnb.integrations.lightning import optimizers_of

    class Model(LightningModule):
        def configure_optimizers(self):
            return optimizers_of(self, lr=0.4)

``return lnb.LNB(self)`` does the same; this function adds a scheduler in the form that Lightning wants. Automatic and manual
optimization, ``gradient_clip_val``, the precisions ``bf16-mixed``, ``bf16-true`` and ``64-true``, the strategy ``ddp``, and
``fit(..., ckpt_path=...)`` need nothing more. FSDP and DeepSpeed strategies shard parameters; what :class:`lnb.LNB` says about
shards holds for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lnb.optimizer import LNB


def optimizers_of(
    module: nn.Module, schedule: Callable[[LNB], Any] | None = None, interval: str = "step", **settings: Any
) -> Any:
    """What ``configure_optimizers`` returns for an LNB of ``module``.

    Args:
        module: the ``LightningModule``.
        schedule: makes the scheduler of the optimizer; None for a constant rate.
        interval: when Lightning steps the scheduler, ``"step"`` or ``"epoch"``.
        settings: what :class:`lnb.LNB` takes beside the model.

    Raises:
        ValueError: ``interval`` is neither of the two; and what :class:`lnb.LNB` raises for its arguments.
        TypeError: what :class:`lnb.LNB` raises for its arguments.
    """
    if interval not in ("step", "epoch"):
        raise ValueError(f"interval={interval!r} must be 'step' or 'epoch'")
    optimizer = LNB(module, **settings)
    if schedule is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), "interval": interval}}
