"""What the classes of attached layers share."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import nn

from lnb.layers.capture import Capture


class ProbedLayer(nn.Module):
    """An attached layer: it has a capture for each weight, by the weight's name, and is pickled as the original class."""

    _lnb_captures: dict[str, Capture]
    _lnb_original: ClassVar[type[nn.Module]]

    def _get_name(self) -> str:
        return self._lnb_original.__name__

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, capture in self._lnb_captures.items():
            capture.follow(getattr(self, name))
        return moved

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        base = getattr(type(self), "_lnb_base", type(self))
        return _rebuild, (base, self._lnb_original), self.__dict__


_FORMS: dict[type[nn.Module], type[ProbedLayer]] = {}


def probed_form(base: type[ProbedLayer], cls: type[nn.Module]) -> type[ProbedLayer]:
    """The attached form of ``cls``, which is the class that ``base`` is the attached form of, or a subclass of it."""
    if cls is base._lnb_original:
        return base
    if cls not in _FORMS:
        members = {"_lnb_original": cls, "_lnb_base": base}
        _FORMS[cls] = cast("type[ProbedLayer]", type(f"Probed{cls.__name__}", (base, cls), members))
    return _FORMS[cls]


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class a layer had before it was attached (its own class if it is not attached)."""
    return module._lnb_original if isinstance(module, ProbedLayer) else type(module)


def detached_class(module: ProbedLayer) -> type[nn.Module]:
    """The class that a layer gets back: its original one, or what was made of the attached one since, as ``fully_shard`` does."""
    cls, original = type(module), module._lnb_original
    if cls in _FORMS.values() or "_lnb_original" in vars(cls):
        return original
    bases = tuple(original if issubclass(base, ProbedLayer) else base for base in cls.__bases__)
    members = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return cast("type[nn.Module]", type(cls.__name__, bases, members))


def _rebuild(base: type[ProbedLayer], cls: type[nn.Module]) -> ProbedLayer:
    """An empty attached layer, to be filled by unpickling."""
    module = cls.__new__(cls)
    object.__setattr__(module, "__class__", probed_form(base, cls))
    return cast(ProbedLayer, module)
