"""Linear Neuron Boosting: an optimizer that preconditions every linear layer by the second moment of its inputs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lnb import solvers, trust_regions
from lnb.config import DEFAULT_LR
from lnb.conversion import from_adamw
from lnb.graphs import graphed_step
from lnb.groups import param_groups
from lnb.layers.attach import attach, detach
from lnb.optimizer import LNB
from lnb.solvers import built_in as _built_in  # registers them  # noqa: F401
from lnb_kernels import __version__ as __version__

if TYPE_CHECKING:
    from lnb import moments
    from lnb.moments import export_moments, gather_moments, load_moments

__all__ = [
    "DEFAULT_LR",
    "LNB",
    "attach",
    "detach",
    "export_moments",
    "from_adamw",
    "gather_moments",
    "graphed_step",
    "load_moments",
    "moments",
    "param_groups",
    "solvers",
    "trust_regions",
]

_OF_MOMENTS = ("export_moments", "gather_moments", "load_moments")


def __getattr__(name: str) -> object:
    """Import what training does not need at its first use."""
    if name == "moments" or name in _OF_MOMENTS:
        found = importlib.import_module("lnb.moments")
        return found if name == "moments" else getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
