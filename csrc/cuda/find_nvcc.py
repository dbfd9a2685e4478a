"""Prints every nvcc that Python packages brought, one a line, newest release first: ``find_nvcc.cmake`` runs it.

pip builds in an environment of its own, whose Python does not see the packages that the user has installed. Their folders can
still be named: those of the interpreter that runs the build, and of the environment that is active.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def site_folders() -> Iterator[Path]:
    """Where packages may lie: what this process sees, its interpreter's own folders, and those of the active environment."""
    yield from map(Path, sys.path)
    for name in ("purelib", "platlib"):
        yield Path(sysconfig.get_path(name))
    yield Path(site.getusersitepackages())
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = os.environ.get(variable)
        if prefix:
            yield from sorted(Path(prefix, "lib").glob("python3*/site-packages"), reverse=True)


def compilers() -> list[str]:
    """Paths of nvcc in packages ``nvidia.*``: a folder per CUDA release, as ``nvidia/cu13``, or ``nvidia/cuda_nvcc``."""
    found: dict[str, None] = {}
    for folder in site_folders():
        places = folder.glob("nvidia/*/bin/nvcc")
        for path in sorted(places, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parts[-3])], reverse=True):
            if os.access(path, os.X_OK):
                found[str(path)] = None
    return list(found)


if __name__ == "__main__":
    print(*compilers(), sep="\n")
