"""Versions and machine, kept with every result."""

from __future__ import annotations

import functools
import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import torch

import lnb_kernels
from lnb.machine import processor

PACKAGES = ("numpy", "pytorch_optimizer", "singd")


def environment() -> dict[str, Any]:
    """What a timing depends on: versions, processor, threads, and the load of the machine at this moment."""
    return {
        "versions": _versions(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"lnb": lnb_kernels.__version__, "torch": torch.__version__, "python": platform.python_version()}
    installed = {found.name: found.version for found in metadata.distributions() if found.name in PACKAGES}
    return versions | dict(sorted(installed.items()))
