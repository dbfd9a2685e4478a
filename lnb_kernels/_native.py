"""The native module: loaded at its first use, never at import. A failure is kept with its cause and its remedy."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from lnb_kernels._backend import KernelUnavailable

MODULE = "lnb_kernels._native_module"
ISA_VARIABLE = "LNB_CPU_ISA"
_REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir lnb-kernels"


def build_info() -> dict[str, Any]:
    """What the build wrote down: whether the module was built, with which compiler, or the reason why not."""
    path = Path(__file__).with_name("_build_info.json")
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"built": False, "reason": "the package runs from a source folder in which nothing was built"}
    except (OSError, ValueError) as error:
        return {"built": False, "reason": f"{path.name} cannot be read: {error}"}
    return info


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
    try:
        cut = _cut_short()
        if cut is not None:
            return None, _unloadable(cut)
        loaded = importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        return None, _missing() if error.name == MODULE else _unloadable(str(error))
    except ImportError as error:
        return None, _unloadable(str(error))
    isa = os.environ.get(ISA_VARIABLE)
    if isa:
        try:
            loaded.select_isa(isa)
        except ValueError as error:
            return None, f"{ISA_VARIABLE}={isa!r}: {error}; remedy: unset {ISA_VARIABLE} or set it to one of these"
    return loaded, None


def _cut_short() -> str | None:
    """What is wrong with the file's size, if anything. To load a file that was cut short can kill the process."""
    spec = importlib.util.find_spec(MODULE)
    expected = build_info().get("bytes")
    if spec is None or spec.origin is None or expected is None:
        return None
    size = Path(spec.origin).stat().st_size
    return None if size == expected else f"{spec.origin} has {size} bytes instead of {expected}"


def _missing() -> str:
    info = build_info()
    if info["built"]:
        return f"the file of {MODULE} is missing although it was built; remedy: {_REINSTALL}"
    return (
        f"the native module was not built: {info['reason']}; remedy: put that right (the build needs a C++17 compiler, "
        f"g++ or clang++; CMake and ninja come with it), then {_REINSTALL}"
    )


def _unloadable(message: str) -> str:
    if "undefined symbol" in message or "version `" in message or "not found" in message:
        cause = "the native module does not fit the Python or C++ runtime of this process"
    else:
        cause = "the file of the native module is damaged or made for another machine"
    return f"{cause}: {message}; remedy: {_REINSTALL}"
