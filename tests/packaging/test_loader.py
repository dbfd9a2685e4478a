"""The native module's loader: lazy, and every way to fail has a cause and a remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import lnb_kernels
from lnb_kernels import _native

PACKAGE = Path(lnb_kernels.__file__).parent
needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))

# Runs in a process of its own, on a copy of the package. Prints the failure, then the sum that the reference gives.
PROBE = """
import sys, warnings
import torch, lnb_kernels as lk
from lnb_kernels import _native
assert "lnb_kernels._native_module" not in sys.modules, "loaded at import"
warnings.simplefilter("ignore")
print(_native.failure())
print(lk.multi_tensor.dot([torch.ones(5)], [torch.ones(5)]).item())
lk.set_backend("native")
try:
    lk.multi_tensor.all_finite([torch.ones(5)])
    print("native works")
except lk._backend.KernelUnavailable as error:
    print("raises:", error)
print(lk.report().as_dict()["native"])
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package, first on the path of the probe."""
    copy = tmp_path / "site" / "lnb_kernels"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def probe(package: Path, run, **env: str) -> list[str]:
    done = run("-c", PROBE, env={"PYTHONPATH": str(package.parent), **env})
    assert done.returncode == 0, done.stderr
    lines: list[str] = done.stdout.splitlines()
    assert lines[1] == "5.0"
    return lines


def native_file(package: Path) -> Path:
    [file] = package.glob("_native_module*.so")
    return file


@needs_native
def test_intact_module_loads_at_its_first_use(package: Path, run) -> None:
    failure, _, explicit, state = probe(package, run)
    assert failure == "None"
    assert explicit == "native works"
    assert "'loaded': True" in state


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_instruction_set_is_chosen_by_the_environment(package: Path, run, isa: str) -> None:
    if isa not in _native.module().isas():
        pytest.skip(f"this CPU has no {isa}")
    assert f"'cpu_isa': '{isa}'" in probe(package, run, LNB_CPU_ISA=isa)[3]


@needs_native
def test_unknown_instruction_set_is_a_named_failure(package: Path, run) -> None:
    failure, _, explicit, _ = probe(package, run, LNB_CPU_ISA="mmx")
    assert "LNB_CPU_ISA='mmx'" in failure
    assert "portable" in failure
    assert "unset LNB_CPU_ISA" in failure
    assert explicit == f"raises: {failure}"


@needs_native
def test_lost_file(package: Path, run) -> None:
    (package / "_build_info.json").write_text('{"built": true}')
    native_file(package).unlink()
    failure, _, explicit, state = probe(package, run)
    assert "is missing although it was built" in failure
    assert "remedy: pip install" in failure
    assert explicit == f"raises: {failure}"
    assert "'loaded': False" in state


@needs_native
def test_build_that_failed_tells_its_reason(package: Path, run) -> None:
    native_file(package).unlink()
    (package / "_build_info.json").write_text('{"built": false, "reason": "no compiler was found"}')
    failure = probe(package, run)[0]
    assert "was not built: no compiler was found" in failure
    assert "C++17 compiler" in failure


@needs_native
def test_source_folder_without_a_build(package: Path, run) -> None:
    native_file(package).unlink()
    (package / "_build_info.json").unlink(missing_ok=True)
    assert "source folder" in probe(package, run)[0]
    (package / "_build_info.json").write_text("not json")
    assert "cannot be read" in probe(package, run)[0]


@needs_native
@pytest.mark.parametrize("content", ["", "not a library", "half", "other"])
def test_damaged_file(package: Path, run, content: str) -> None:
    file = native_file(package)
    intact = file.read_bytes()
    (package / "_build_info.json").write_text(f'{{"built": true, "bytes": {{"_native_module": {len(intact)}}}}}')
    file.write_bytes({"half": intact[: len(intact) // 2], "other": intact[::-1]}.get(content, content.encode()))
    failure, _, explicit, _ = probe(package, run)
    assert "damaged or made for another machine" in failure
    assert "--force-reinstall" in failure
    assert explicit.startswith("raises: ")


@needs_native
def test_undefined_symbol(package: Path, run) -> None:
    """The name of a symbol that the module needs is altered: what a foreign C++ runtime looks like."""
    file = native_file(package)
    content = file.read_bytes()
    symbol = b"PyEval_SaveThread"
    assert symbol in content
    file.write_bytes(content.replace(symbol, b"PyEval_SaveThreat"))
    failure = probe(package, run)[0]
    assert "undefined symbol" in failure
    assert "does not fit" in failure
