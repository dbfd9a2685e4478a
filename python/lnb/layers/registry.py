"""The kinds of layers that are claimed: one line each."""

from __future__ import annotations

from torch import nn

from lnb.layers.attention import AttentionKind
from lnb.layers.convolution import Conv1dKind, Conv2dKind
from lnb.layers.kind import LayerKind
from lnb.layers.linear import LinearKind
from lnb.layers.transposed import TransposedKind

KINDS: tuple[LayerKind, ...] = (
    LinearKind(),
    Conv1dKind(),
    Conv2dKind(),
    AttentionKind(),
    TransposedKind(),
)


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of ``module``, attached or not; None of a layer that is of none."""
    return next((kind for kind in KINDS if isinstance(module, kind.original)), None)


def claimed_names() -> str:
    """The classes that are claimed, in words."""
    names = [kind.title for kind in KINDS]
    return f"{', '.join(names[:-1])} or {names[-1]}"
