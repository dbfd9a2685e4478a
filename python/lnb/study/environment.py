"""Versions and machine, kept with every result."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lnb_kernels

PACKAGES = ("numpy", "pytorch-optimizer")


def environment() -> dict[str, Any]:
    """What a timing depends on: versions, processor, threads, and the load of the machine at this moment."""
    versions = {"lnb": lnb_kernels.__version__, "torch": torch.__version__, "python": platform.python_version()}
    installed = {name for found in metadata.distributions() if (name := found.name) in PACKAGES}
    versions |= {package: metadata.version(package) for package in sorted(installed)}
    return {
        "versions": versions,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
