"""Loading of a compiled module of this package: the module, or why there is none.

Kernels do not load modules from here: they ask :mod:`lnb_kernels._native`, which chooses an instruction set, or
:mod:`lnb_kernels._cuda`, which judges every device. What these two share is here: how a file is found and checked, and the
words for what is wrong with it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir lnb-kernels"


def build_info() -> dict[str, Any]:
    """What the build wrote down: whether the modules were built, with which compilers, or the reason why not."""
    path = Path(__file__).with_name("_build_info.json")
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"built": False, "reason": "the package runs from a source folder in which nothing was built"}
    except (OSError, ValueError) as error:
        return {"built": False, "reason": f"{path.name} cannot be read: {error}"}
    return info


@functools.cache
def load(name: str, what: str) -> tuple[Any, str | None]:
    """The module ``lnb_kernels.<name>``, or why it cannot be loaded. A module that was not built is "missing".

    Args:
        name: of the module in this package.
        what: it is called in messages.
    """
    path = f"lnb_kernels.{name}"
    try:
        cut = _cut_short(name)
        if cut is not None:
            return None, _unloadable(what, cut)
        return importlib.import_module(path), None
    except ModuleNotFoundError as error:
        return None, "missing" if error.name == path else _unloadable(what, str(error))
    except ImportError as error:
        return None, _unloadable(what, str(error))


def lost(name: str) -> str:
    """The failure of a module that was built, and is not there."""
    return f"the file of lnb_kernels.{name} is missing although it was built; remedy: {REINSTALL}"


def _cut_short(name: str) -> str | None:
    """What is wrong with the file's size, if anything. To load a file that was cut short can kill the process."""
    spec = importlib.util.find_spec(f"lnb_kernels.{name}")
    expected = build_info().get("bytes", {}).get(name)
    if spec is None or spec.origin is None or expected is None:
        return None
    size = Path(spec.origin).stat().st_size
    return None if size == expected else f"{spec.origin} has {size} bytes instead of {expected}"


def _unloadable(what: str, message: str) -> str:
    if "undefined symbol" in message or "version `" in message or "not found" in message:
        cause = f"{what} does not fit the Python or C++ runtime of this process"
    else:
        cause = f"the file of {what} is damaged or made for another machine"
    return f"{cause}: {message}; remedy: {REINSTALL}"
