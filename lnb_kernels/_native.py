"""The native CPU module: loaded at its first use, never at import. A failure is kept with its cause and its remedy."""

from __future__ import annotations

import functools
import os
from typing import Any

from lnb_kernels import _extension
from lnb_kernels._backend import KernelUnavailable

ISA_VARIABLE = "LNB_CPU_ISA"
_NAME = "_native_module"


def module() -> Any:
    """The native module.

    Raises:
        KernelUnavailable: it cannot be loaded here; the message gives cause and remedy. Later calls raise it again.
    """
    loaded, failure = _load()
    if failure is not None:
        raise KernelUnavailable(failure)
    return loaded


def failure() -> str | None:
    """Why the native module does not load here, with the remedy; None where it does. Tries to load it."""
    return _load()[1]


@functools.lru_cache(maxsize=1)
def _load() -> tuple[Any, str | None]:
    """The module, or why there is none."""
    loaded, failure = _extension.load(_NAME, "the native module")
    if failure == "missing":
        return None, _missing()
    isa = os.environ.get(ISA_VARIABLE)
    if failure is None and isa:
        try:
            loaded.select_isa(isa)
        except ValueError as error:
            return None, f"{ISA_VARIABLE}={isa!r}: {error}; remedy: unset {ISA_VARIABLE} or set it to one of these"
    return loaded, failure


def _missing() -> str:
    info = _extension.build_info()
    if info["built"]:
        return _extension.lost(_NAME)
    return (
        f"the native module was not built: {info['reason']}; remedy: put that right (the build needs a C++17 compiler, "
        f"g++ or clang++; CMake and ninja come with it), then {_extension.REINSTALL}"
    )
