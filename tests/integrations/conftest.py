"""timm on a machine whose torchvision belongs to another torch, or that has none."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import pytest


class _Named(type):
    """A class whose attributes are their own names, as the members of an enumeration print themselves."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives ``torchvision`` and all below it as modules that have every class one asks for, and do nothing.

    timm reads names of torchvision while it is imported, for image transforms and for norms that it replaces; neither models
    nor parameter groups nor schedulers call it.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)

        def attribute(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return _Named(name, (), {})

        module.__getattr__ = attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@pytest.fixture(scope="session")
def timm() -> Iterator[Any]:
    """The package."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    try:
        yield importlib.import_module("timm")
    except (ImportError, RuntimeError):  # the latter where its operators are of another torch
        for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        finder = _StandIn()
        sys.meta_path.insert(0, finder)
        try:
            yield importlib.import_module("timm")
        finally:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
