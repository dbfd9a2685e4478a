"""Settings for those who come from AdamW."""

from __future__ import annotations

import math

import pytest
from torch import nn

import lnb


def test_rates_and_decays_of_adamw_are_converted() -> None:
    """A step takes the same share of the weights; the rate is the preset's own."""
    settings = lnb.from_adamw(3e-4, 0.1)
    assert settings["lr"] == lnb.DEFAULT_LR["fast"]
    assert settings["lr"] * settings["weight_decay"] == pytest.approx(3e-4 * 0.1)
    assert lnb.LNB(nn.Linear(2, 2), **settings).param_groups[0]["weight_decay"] == settings["weight_decay"]
    assert lnb.from_adamw(1e-3, 0.0)["weight_decay"] == 0


@pytest.mark.parametrize(
    ("lr", "decay", "words"), [(0.0, 0.1, "lr=0"), (math.nan, 0.1, "lr=nan"), (1e-3, -1.0, "weight_decay=-1.0")]
)
def test_what_adamw_would_not_take_is_not_converted(lr: float, decay: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lnb.from_adamw(lr, decay)
