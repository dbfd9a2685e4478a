"""Linear Neuron Boosting: an optimizer that preconditions every linear layer by the second moment of its inputs."""

from __future__ import annotations

from lnb import trust_regions
from lnb.config import DEFAULT_LR
from lnb.groups import param_groups
from lnb.layers.attach import attach, detach
from lnb.optimizer import LNB

__all__ = ["DEFAULT_LR", "LNB", "attach", "detach", "param_groups", "trust_regions"]
