"""Making the linear layers of a model report the second moment of their inputs, and undoing it.

An attached layer keeps its parameters, names, ``state_dict`` keys, results and ``isinstance`` relations: only its class
is replaced by a subclass whose ``forward`` calls :func:`lnb_kernels.linear` or :func:`lnb_kernels.conv2d` with a
*moment probe*. The probe's gradient is the second moment, so that autograd keeps the books under gradient
accumulation, checkpointing and repeated use.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.attention import attend, attention_captures, captures_now, is_regular
from lnb.capture import Capture

M = TypeVar("M", bound=nn.Module)


class ProbedLayer(nn.Module):
    """What attached layers share: a capture for each weight, by the weight's name, and pickling by the original class."""

    _lnb_captures: dict[str, Capture]

    def _get_name(self) -> str:
        return original_class(self).__name__

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, capture in self._lnb_captures.items():
            capture.follow(getattr(self, name))
        return moved

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (original_class(self),), self.__dict__


class ProbedLinear(ProbedLayer, nn.Linear):
    """An attached ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """``nn.Linear``'s forward, with the layer's moment probe."""
        capture = self._lnb_captures["weight"]
        output = lk.linear(input, self.weight, self.bias, probe=capture.probe_for(self.weight), **capture.reading)
        capture.keep(self.weight, input, output)
        capture.count(self.weight, input, output, output.numel() // self.out_features)
        return output


class ProbedConv2d(ProbedLayer, nn.Conv2d):
    """An attached ``nn.Conv2d``. With a ``padding_mode`` other than zeros, its input is the padded one."""

    def forward(self, input: Tensor) -> Tensor:
        """``nn.Conv2d``'s forward, with the layer's moment probes."""
        capture = self._lnb_captures["weight"]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        output = lk.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            probe=capture.probe_for(self.weight),
            channel_probe=capture.channel_probe_for(self.weight),
            **capture.reading,
        )
        capture.keep(self.weight, input, output)
        capture.count(self.weight, input, output, output.numel() // self.out_channels)
        return output


class ProbedMultiheadAttention(ProbedLayer, nn.MultiheadAttention):
    """An attached ``nn.MultiheadAttention``; its ``out_proj`` is attached as the linear layer that it is."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The original's result, by the original unless the inputs of a projection are captured."""
        out = self.out_proj
        captures = captures_now(self._lnb_captures, self)
        captures = captures or (isinstance(out, ProbedLayer) and captures_now(out._lnb_captures, out))
        arguments = query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        regular = is_regular(self, query, key, value, key_padding_mask, attn_mask, is_causal)
        if not (captures and regular and torch.is_grad_enabled()):
            return nn.MultiheadAttention.forward(self, *arguments)
        project = ProbedLinear.forward if isinstance(out, ProbedLinear) else nn.Linear.forward
        return attend(self, self._lnb_captures, partial(project, out), *arguments)  # type: ignore[arg-type]


_PROBED: dict[type[nn.Module], type[ProbedLayer]] = {
    nn.Linear: ProbedLinear,
    nn.Conv2d: ProbedConv2d,
    nn.MultiheadAttention: ProbedMultiheadAttention,
}
_BASES = tuple(_PROBED)


def probed_class(cls: type[nn.Module]) -> type[ProbedLayer]:
    """The attached form of ``cls``, one of the layers above or a subclass that keeps its ``forward``."""
    if cls not in _PROBED:
        base = next(_PROBED[base] for base in _BASES if issubclass(cls, base))
        _PROBED[cls] = cast("type[ProbedLayer]", type(f"Probed{cls.__name__}", (base, cls), {}))
    return _PROBED[cls]


def weight_roles(module: nn.Module) -> dict[str, str | None]:
    """The weights of a layer's linear maps, each with its bias, if that is its own, by their names."""
    if not isinstance(module, nn.MultiheadAttention):
        return {"weight": "bias"}
    if module._parameters.get("in_proj_weight") is not None:
        return {"in_proj_weight": "in_proj_bias"}
    return {"q_proj_weight": None, "k_proj_weight": None, "v_proj_weight": None}


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class a layer had before it was attached (its own class if it is not attached)."""
    for original, probed in _PROBED.items():
        if type(module) is probed:
            return original
    return type(module)


def _rebuild(cls: type[nn.Module]) -> ProbedLayer:
    """An empty attached layer, to be filled by unpickling."""
    module = cls.__new__(cls)
    object.__setattr__(module, "__class__", probed_class(cls))
    return cast(ProbedLayer, module)


def unsupported_reason(module: nn.Module) -> str | None:
    """Why a layer's inputs cannot be captured, or None if they can."""
    cls = original_class(module)
    base = next((base for base in _BASES if isinstance(module, base)), None)
    if base is None:
        return f"{cls.__name__} is not a linear, 2-d convolution or attention layer"
    forward: Callable[..., Any] = cls.forward
    if forward is not base.forward:
        return f"{cls.__name__} has its own forward"
    if isinstance(module, nn.Conv2d) and cls._conv_forward is not nn.Conv2d._conv_forward:  # type: ignore[attr-defined]
        return f"{cls.__name__} has its own _conv_forward"
    weights = [module._parameters.get(name) for name in weight_roles(module)]
    if any(weight is None for weight in weights):
        return "its weight is computed from other parameters (parametrization, weight norm or pruning)"
    if any(isinstance(weight, nn.parameter.UninitializedParameter) for weight in weights):
        return "its shape is not known yet: run one forward pass before attaching"
    if any(weight is not None and weight.is_complex() for weight in weights):
        return "its weight is complex"
    return None


def attach(model: M, exclude: Iterable[nn.Module] = ()) -> M:
    """Make the linear, convolution and attention layers of ``model`` able to report their inputs' second moments.

    These are ``nn.Linear``, ``nn.Conv2d`` and ``nn.MultiheadAttention``, and subclasses that keep their ``forward``.

    Parameters, their names, ``state_dict`` keys, ``isinstance`` and results stay as they are. :class:`lnb.LNB` calls
    this itself. Attaching twice changes nothing.

    Args:
        model: any module, changed in place.
        exclude: modules to leave alone, with everything inside them.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` or an entry of ``exclude`` is no module.
    """
    attach_layers(model, exclude)
    return model


def attach_layers(model: nn.Module, exclude: Iterable[nn.Module] = ()) -> list[nn.Module]:
    """:func:`attach`; returns the layers that were not attached before."""
    require_module("model", model)
    exclude = list(exclude)
    for module in exclude:
        require_module("exclude", module)
    left_alone = {id(inner) for module in exclude for inner in module.modules()}
    attached = []
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and unsupported_reason(module) is not None:
            left_alone.add(id(module.out_proj))  # its forward is never called
    for module in model.modules():
        if id(module) in left_alone or isinstance(module, ProbedLayer) or unsupported_reason(module) is not None:
            continue
        object.__setattr__(module, "_lnb_captures", _captures(module))
        object.__setattr__(module, "__class__", probed_class(type(module)))
        attached.append(module)
    return attached


def _captures(module: nn.Module) -> dict[str, Capture]:
    if isinstance(module, nn.MultiheadAttention):
        return attention_captures(module)
    return {"weight": Capture.for_layer(module)}


def require_module(name: str, value: object) -> None:
    """Require a ``torch.nn.Module``."""
    if not isinstance(value, nn.Module):
        hint = ": pass the model itself, not its parameters" if name == "model" else ""
        raise TypeError(f"{name}={reprlib.repr(value)} must be a torch.nn.Module, not {type(value).__name__}{hint}")


def detach(model: M) -> M:
    """Undo :func:`attach`: every layer of ``model`` gets its class back and forgets what it captured.

    Returns:
        ``model``.
    """
    require_module("model", model)
    for module in model.modules():
        detach_layer(module)
    return model


def detach_layer(module: nn.Module) -> None:
    """Undo what :func:`attach` did to one layer, if it did anything."""
    if isinstance(module, ProbedLayer):
        original = original_class(module)
        object.__delattr__(module, "_lnb_captures")
        object.__setattr__(module, "__class__", original)
