"""Libraries that let a CUDA build of torch load on a machine without CUDA: every function in them reports an error.

torch is linked against some 2 GB of NVIDIA's libraries, whose functions it does not call as long as none of them finds a
device. What the loader wants is their names and symbols.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

ENVIRONMENT = {"TORCH_USE_RTLD_GLOBAL": "1"}
"""With it, ``import torch`` resolves functions when they are called and does not look for NVIDIA's packages."""

_NVIDIA = re.compile(r"(lib)?(cu|nccl|nv)")
_NO_DEVICE = 100  # cudaErrorNoDevice


def install(site_packages: Path) -> None:
    """Put the missing libraries beside those of the torch in ``site_packages``."""
    folder = site_packages / "torch" / "lib"
    missing: set[str] = set()
    symbols: dict[str, set[str]] = defaultdict(set)  # by version, which is the library's name
    for library in (*folder.glob("*.so*"), *(site_packages / "torch").glob("_C*.so")):
        needed = re.findall(r"NEEDED.*\[(.*?)\]", _read("-d", library))
        missing |= {name for name in needed if _NVIDIA.match(name) and not (folder / name).exists()}
        for line in _read("--dyn-syms", library).splitlines():
            fields = line.split()
            if len(fields) >= 8 and fields[6] == "UND":
                name, _, version = fields[7].partition("@")
                symbols[version].add(name)
    for name in missing:
        own = symbols[name]
        if name == "libcuda.so.1":  # NVIDIA's other symbols carry no version
            own = {symbol for symbol in symbols[""] if _NVIDIA.match(symbol)}
        _compile(folder / name, own, version=name if symbols[name] else None)


def _compile(target: Path, symbols: set[str], version: str | None) -> None:
    source, script = target.with_suffix(".c"), target.with_suffix(".map")
    source.write_text("".join(f"int {symbol}(void) {{ return {_NO_DEVICE}; }}\n" for symbol in sorted(symbols)))
    script.write_text(f"{version} {{ global: *; }};\n")
    options = [f"-Wl,--version-script={script}"] if version else []
    command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{target.name}", *options, str(source), "-o", str(target)]
    subprocess.run(command, check=True)


def _read(what: str, library: Path) -> str:
    return subprocess.run(["readelf", what, "-W", str(library)], capture_output=True, text=True, check=True).stdout
