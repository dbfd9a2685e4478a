"""Settings for those who come from AdamW with a tuned rate and weight decay."""

from __future__ import annotations

import math

from lnb.config import DEFAULT_LR


def from_adamw(lr: float, weight_decay: float = 0.01) -> dict[str, float]:
    """The settings of :class:`lnb.LNB`, of the default preset, that stand for ``AdamW(lr=lr, weight_decay=weight_decay)``.

    ``optimizer = lnb.LNB(model, **lnb.from_adamw(3e-4, 0.1))``

    The rate is the preset's own, whatever ``lr`` was. AdamW's rate is a length in the units of the weights, and has to be
    found anew for every model; LNB's is the most by which a step changes a neuron's output, and damping shortens it to what a
    layer bears. Decay has the same unit in both: a step takes ``lr weight_decay`` of every weight. This product is kept, so
    ``weight_decay`` is multiplied by the ratio of the rates. ``bench/conversion_study.py`` puts
    both to the test on three tasks.

    Args:
        lr: AdamW's, the peak of its schedule. The schedule itself is used as it is, relative to the peak.
        weight_decay: AdamW's; the default is PyTorch's.

    Returns:
        ``lr`` and ``weight_decay``.

    Raises:
        ValueError: a value that AdamW would not take, or a rate of 0.
    """
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"from_adamw(): {name}={value!r} must be finite and at least 0: give the value that AdamW was tuned to"
            )
    if lr == 0:
        raise ValueError("from_adamw(): lr=0 trains nothing: give the peak of AdamW's schedule")
    own = DEFAULT_LR["fast"]
    return {"lr": own, "weight_decay": weight_decay * lr / own}
