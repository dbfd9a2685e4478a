"""Making the linear layers of a model report the second moment of their inputs, and undoing it.

An attached layer keeps its parameters, names, ``state_dict`` keys, results and ``isinstance`` relations: only its class
is replaced by a subclass whose ``forward`` calls :func:`lnb_kernels.linear` or :func:`lnb_kernels.conv2d` with a
*moment probe*. The probe's gradient is the second moment, so that autograd keeps the books under gradient
accumulation, checkpointing and repeated use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.capture import Capture

M = TypeVar("M", bound=nn.Module)


class ProbedLayer(nn.Module):
    """What attached layers share: the capture, and pickling by the original class."""

    _lnb_capture: Capture

    def _get_name(self) -> str:
        return original_class(self).__name__

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (original_class(self),), self.__dict__


class ProbedLinear(ProbedLayer, nn.Linear):
    """An attached ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:
        capture = self._lnb_capture
        output = lk.linear(input, self.weight, self.bias, probe=capture.probe_for(input))
        capture.keep(input, output)
        return output


class ProbedConv2d(ProbedLayer, nn.Conv2d):
    """An attached ``nn.Conv2d``. With a ``padding_mode`` other than zeros, its input is the padded one."""

    def forward(self, input: Tensor) -> Tensor:
        capture = self._lnb_capture
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
            probe=capture.probe_for(input),
            channel_probe=capture.channel_probe_for(input),
        )
        capture.keep(input, output)
        return output


_PROBED: dict[type[nn.Module], type[ProbedLayer]] = {nn.Linear: ProbedLinear, nn.Conv2d: ProbedConv2d}


def probed_class(cls: type[nn.Module]) -> type[ProbedLayer]:
    """The attached form of ``cls``, a ``nn.Linear`` or ``nn.Conv2d`` or a subclass that keeps its ``forward``."""
    if cls not in _PROBED:
        base = ProbedLinear if issubclass(cls, nn.Linear) else ProbedConv2d
        _PROBED[cls] = cast("type[ProbedLayer]", type(f"Probed{cls.__name__}", (base, cls), {}))
    return _PROBED[cls]


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
    if isinstance(module, nn.Linear):
        base: type[nn.Module] = nn.Linear
    elif isinstance(module, nn.Conv2d):
        base = nn.Conv2d
    else:
        return f"{cls.__name__} is not a linear or 2-d convolution layer"
    forward: Callable[..., Any] = cls.forward
    if forward is not base.forward:
        return f"{cls.__name__} has its own forward"
    if isinstance(module, nn.Conv2d) and cls._conv_forward is not nn.Conv2d._conv_forward:  # type: ignore[attr-defined]
        return f"{cls.__name__} has its own _conv_forward"
    if "weight" not in module._parameters:
        return "its weight is computed from other parameters (parametrization, weight norm or pruning)"
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return "its shape is not known yet: run one forward pass before attaching"
    if module.weight.is_complex():
        return "its weight is complex"
    return None


def attach(model: M, exclude: Iterable[nn.Module] = ()) -> M:
    """Make every ``nn.Linear`` and ``nn.Conv2d`` of ``model`` able to report its inputs' second moment.

    Parameters, their names, ``state_dict`` keys, ``isinstance`` and results stay as they are. :class:`lnb.LNB` calls
    this itself. Attaching twice changes nothing.

    Args:
        model: any module, changed in place.
        exclude: modules to leave alone, with everything inside them.

    Returns:
        ``model``.
    """
    left_alone = {id(inner) for module in exclude for inner in module.modules()}
    for module in model.modules():
        if id(module) in left_alone or isinstance(module, ProbedLayer) or unsupported_reason(module) is not None:
            continue
        object.__setattr__(module, "_lnb_capture", Capture.for_layer(module))
        object.__setattr__(module, "__class__", probed_class(type(module)))
    return model


def detach(model: M) -> M:
    """Undo :func:`attach`: every layer of ``model`` gets its class back and forgets what it captured.

    Returns:
        ``model``.
    """
    for module in model.modules():
        if isinstance(module, ProbedLayer):
            original = original_class(module)
            object.__delattr__(module, "_lnb_capture")
            object.__setattr__(module, "__class__", original)
    return model
