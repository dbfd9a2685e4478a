"""Seeing the inputs of a model's layers in a forward pass, without gradients, and leaving the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lnb.layers.attention_forward import attend, is_regular
from lnb.layers.claimed import Layer
from lnb.layers.registry import kind_of
from lnb.moments.naming import Names, layers_of, names_in

Seen = Callable[["Tap", Tensor, Sequence[int]], None]
"""Called with the layer, its input, and the groups of its weight that the input belongs to."""


@dataclass(frozen=True, eq=False)
class Tap:
    """One layer that is watched.

    Attributes:
        name: of the layer.
        layer: its weight, and the modules that use it.
    """

    name: str
    layer: Layer


def taps_of(model: nn.Module) -> list[tuple[Tap, Names]]:
    """The layers of ``model``, without wrappers, that LNB would claim."""
    blocks = layers_of(model)
    return [(Tap(names.layer, layer), names) for layer, names in zip(blocks, names_in(model, blocks), strict=True)]


@contextmanager
def watched(model: nn.Module, taps: Sequence[Tap], seen: Seen) -> Iterator[None]:
    """Within it, forward passes report the inputs of layers to ``seen``. Compiled models run without their compiled code.

    Args:
        model: that the layers are of.
        taps: the layers.
        seen: is told every input; what it raises ends the forward pass.
    """
    of_module: dict[nn.Module, list[Tap]] = {}
    for tap in taps:
        for module in tap.layer.modules:
            of_module.setdefault(module, []).append(tap)
    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                if module in of_module or module.out_proj in of_module:
                    _replace_forward(module, of_module.get(module, []), seen, undo)
            elif module in of_module:
                (tap,) = of_module[module]
                undo.callback(module.register_forward_pre_hook(_hook(tap, seen), with_kwargs=True).remove)
        undo.enter_context(_layer_by_layer())
        yield


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Switch off code paths that compute several layers at once without calling them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _hook(tap: Tap, seen: Seen) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def report(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = arguments[0] if arguments else named["input"]
        seen(tap, x.detach(), range(tap.layer.groups))

    return report


def _replace_forward(attention: nn.MultiheadAttention, taps: list[Tap], seen: Seen, undo: ExitStack) -> None:
    """PyTorch's forward calls no layer: have ``attention`` compute the same by calls until ``undo``."""
    kind, original, own = kind_of(attention), attention.forward, attention.__dict__.get("forward")
    assert kind is not None
    captures = kind.captures(attention)  # switched off

    def forward(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        values = {**_DEFAULTS, **dict(zip(_ARGUMENTS, arguments, strict=False)), **named}
        query, key, value, padding, need_weights, mask, average, causal = (values[name] for name in _ARGUMENTS)
        if query.is_nested or not is_regular(attention, query, key, value, padding, mask, causal):
            if query.is_nested:
                raise ValueError("query of an nn.MultiheadAttention is a nested tensor; pass padded ones")
            return original(*arguments, **named)  # says what is wrong
        for tap in taps:
            for x, groups in _inputs_of(tap, query, key, value):
                seen(tap, x.detach(), groups)
        return attend(
            attention, captures, attention.out_proj, query, key, value, padding, need_weights, mask, average, causal
        )

    def restore() -> None:
        if own is None:
            del attention.__dict__["forward"]
        else:
            attention.__dict__["forward"] = own

    attention.__dict__["forward"] = forward
    undo.callback(restore)


_DEFAULTS = {
    "key_padding_mask": None,
    "need_weights": True,
    "attn_mask": None,
    "average_attn_weights": True,
    "is_causal": False,
}
_ARGUMENTS = ("query", "key", "value", *_DEFAULTS)


def _inputs_of(tap: Tap, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
    """What an in-projection sees, each with the groups of its weight; one entry for what is the same tensor."""
    inputs = {"q": query, "k": key, "v": value}
    if not tap.layer.packed:
        return [(inputs[tap.layer.weight_role[0]], (0,))]
    found: dict[int, tuple[Tensor, tuple[int, ...]]] = {}
    for group, x in enumerate(inputs.values()):
        found[id(x)] = (x, (*found.get(id(x), (x, ()))[1], group))
    return list(found.values())
