"""Measured rates on disk, one small JSON file per device and software. After any failure it is as if there were none."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from lnb.machine import cache_folder
from lnb.planning.rates import Rates
from lnb.reading import parse_json, read_bytes

FORMAT = 1
# A file of rates has about 1 KiB. The parser recurses into nested brackets, and where some library has raised Python's
# recursion limit a long damaged file would overflow the stack.
_LONGEST = 8192


def cache_directory() -> Path:
    """``$LNB_CACHE``, else :func:`lnb.machine.cache_folder`.

    Raises:
        RuntimeError: there is no home directory.
    """
    own = os.environ.get("LNB_CACHE")
    return Path(own) if own else cache_folder()


def path_of(key: dict[str, str]) -> Path:
    """The file of the rates measured under ``key``."""
    text = json.dumps({"format": str(FORMAT), **key}, sort_keys=True)
    return cache_directory() / "rates" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def load(key: dict[str, str]) -> Rates | None:
    """The rates stored under ``key``; None where there are none, or the file is damaged or of another key."""
    try:
        content = parse_json(read_bytes(path_of(key), _LONGEST))
        if content["format"] != FORMAT or content["key"] != key:
            return None
        return Rates.from_dict(content["rates"], "measured earlier")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def store(key: dict[str, str], rates: Rates) -> bool:
    """Remember ``rates`` under ``key``: the whole file at once, so that no reader sees half of it.

    Returns:
        Whether that was possible.
    """
    content = json.dumps({"format": FORMAT, "key": key, "rates": rates.as_dict()}, indent=1)
    temporary: str | None = None
    try:
        path = path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content + "\n")
        os.replace(temporary, path)
    except (OSError, RuntimeError):
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        return False
    return True
