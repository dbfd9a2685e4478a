"""LNB on timm's parameter groups, as ``timm.optim.create_optimizer_v2`` makes them for its own optimizers.

    from lnb.integrations.timm import create_optimizer

    optimizer = create_optimizer(model, lr=0.4, weight_decay=1e-4, layer_decay=0.75)
    scheduler = timm.scheduler.CosineLRScheduler(optimizer, t_initial=epochs)

With ``layer_decay`` every group has an ``lr_scale``. timm's schedulers multiply the rate by it, timm's optimizers and LNB do not.
With a scheduler of torch use ``lnb.param_groups(model, lr=..., layer_decay=...)`` instead, which writes the product into ``lr``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from lnb.optimizer import LNB


def create_optimizer(
    model: nn.Module,
    lr: float | Tensor | None = None,
    weight_decay: float = 0.0,
    *,
    layer_decay: float | None = None,
    no_weight_decay: Collection[str] = (),
    **settings: Any,
) -> LNB:
    """An LNB with timm's groups.

    Args:
        model: of timm, or any other.
        lr: as of :class:`lnb.LNB`.
        weight_decay: of parameters of two or more dimensions.
        layer_decay: what rates are multiplied by from each layer to the one before it; None for one rate.
        no_weight_decay: more parameters without decay, by name or pattern, beside those of ``model.no_weight_decay()``.
        settings: what :class:`lnb.LNB` takes beside the model and its parameters.

    Raises:
        ImportError: timm is not installed.
        TypeError, ValueError: what :class:`lnb.LNB` raises for its arguments.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    listed = getattr(model, "no_weight_decay", None)
    own = listed() if callable(listed) and not isinstance(listed, Tensor) else ()
    kept = {*own, *no_weight_decay}
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=kept)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=kept, layer_decay=layer_decay)
    return LNB(model, lr, params=groups, **settings)
