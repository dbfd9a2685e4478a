"""The wheel: what is in it, that it needs no torch to build, and that a missing compiler costs only speed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def build(project: Path, run, **env: str) -> Path:
    out = project.parent / "dist"
    arguments = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(project)]
    done = run(*arguments, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = out.glob("*.whl")
    return wheel


def test_build_requirements_leave_torch_out() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        requirements = tomllib.load(file)["build-system"]["requires"]
    names = {requirement.split(">")[0].split("=")[0].strip() for requirement in requirements}
    assert names == {"setuptools", "cmake", "ninja", "pybind11"}


def test_sources_include_no_torch_header() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert len(sources) >= 8
    for path in sources:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#include"):
                assert not any(name in line for name in ("torch", "ATen", "c10")), f"{path}: {line}"


def test_the_harness_is_of_the_same_version_and_the_library_does_not_know_it() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        library = tomllib.load(file)["project"]
    with (ROOT / "bench" / "pyproject.toml").open("rb") as file:
        harness = tomllib.load(file)["project"]
    assert harness["version"] == library["version"]
    assert f"lnb-kernels[cli]=={library['version']}" in harness["dependencies"]
    for folder in ("lnb_kernels", "python"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "lnb_bench" not in path.read_text(encoding="utf-8"), path


def test_wheel_holds_every_module_and_the_native_one(project: Path, run) -> None:
    shutil.copytree(ROOT / "bench" / "lnb_bench", project / "bench" / "lnb_bench")
    wheel = build(project, run, LNB_NATIVE="required", LNB_WERROR="1")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = json.loads(archive.read("lnb_kernels/_build_info.json"))
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    sources = {path.relative_to(project).as_posix() for path in (project / "lnb_kernels").rglob("*.py")}
    sources |= {path.relative_to(project / "python").as_posix() for path in (project / "python").rglob("*.py")}
    assert sources <= names, sources - names
    assert {"lnb_kernels/py.typed", "lnb/py.typed"} <= names
    native = [name for name in names if name.startswith("lnb_kernels/_native_module")]
    assert len(native) == 1
    assert not [name for name in names if name.startswith(("csrc", "tests", "bench", "lnb_bench"))]
    assert not [name for name in names if name.startswith(("lnb/training", "lnb/study"))]
    assert info["built"] is True
    assert "Requires-Dist: torch>=2.10" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_source_distribution_holds_all_that_a_build_needs(project: Path, run) -> None:
    """The other tests here build from the same files, and from no others."""
    (project / "lnb_kernels" / "_native_module.so").write_bytes(b"left behind by a build in place")
    wanted = {path.relative_to(project) for path in project.rglob("*") if path.is_file() and path.suffix != ".so"}
    code = f"import os; os.chdir({str(project)!r}); from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = run("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    [archive] = (project / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {Path(*Path(name).parts[1:]) for name in tar.getnames()}
    assert wanted <= held, wanted - held
    assert not [path for path in held if path.suffix == ".so" or path.name == "_build_info.json"]


@pytest.mark.parametrize("variable", ["LNB_CUDA", "LNB_NATIVE"])
def test_unknown_build_options_are_named(project: Path, run, variable: str) -> None:
    code = f"import os, runpy, sys; os.chdir({str(project)!r}); sys.argv = ['setup.py', 'build_ext']; runpy.run_path('setup.py')"
    done = run("-c", code, env={variable: "maybe"})
    assert done.returncode != 0
    assert f"{variable}='maybe' is not allowed; choose one of auto" in done.stderr


@pytest.mark.parametrize("missing", ["compiler", "cmake"])
def test_without_a_tool_the_wheel_is_plain_python_and_report_says_so(project: Path, run, missing: str) -> None:
    if missing == "compiler":
        env = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    else:
        blocked = project.parent / "blocked"  # a `cmake` package that does not import, and no cmake on PATH
        (blocked / "cmake").mkdir(parents=True)
        (blocked / "cmake" / "__init__.py").write_text("raise ImportError('blocked')\n")
        env = {"PYTHONPATH": str(blocked), "PATH": str(blocked)}
    wheel = build(project, run, **env)
    site = project.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = f"""
import warnings, torch, lnb_kernels as lk
assert lk.__file__.startswith({str(site)!r}), lk.__file__
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = [torch.ones(3)]
    lk.multi_tensor.ema_combined_(x, [torch.zeros(3)], 0.5, torch.ones(1), 0.0)
    lk.multi_tensor.ema_combined_(x, [torch.zeros(3)], 0.5, torch.ones(1), 0.0)
    lk.multi_tensor.dot(x, x)
assert torch.equal(x[0], torch.full((3,), 0.25))
print(len([w for w in caught if "lnb_kernels" in str(w.message)]), "warning")
print(lk.report())
"""
    done = run("-c", code, env={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 warning")
    assert "the native module was not built" in done.stdout
    assert {"compiler": "/nonexistent/c++", "cmake": "cmake does not run"}[missing] in done.stdout
    assert "remedy" in done.stdout


def test_required_native_module_fails_the_build_with_the_reason(project: Path, run) -> None:
    done = run(
        *("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(project), str(project)),
        env={"LNB_NATIVE": "required", "CXX": "/nonexistent/c++"},
    )
    assert done.returncode != 0
    assert "LNB_NATIVE=required" in done.stdout + done.stderr


def test_editable_install_builds_the_module_in_place(project: Path, run) -> None:
    site = project.parent / "site"
    done = run(
        *("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)),
        *("--editable", str(project)),
        env={"LNB_NATIVE": "required"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((project / "lnb_kernels").glob("_native_module*"))) == 1
    assert json.loads((project / "lnb_kernels" / "_build_info.json").read_text())["built"] is True


@pytest.mark.skipif(os.environ.get("LNB_TEST_INSTALLED") != "1", reason="only `make test` promises an installed wheel")
def test_these_tests_run_against_the_installed_wheel() -> None:
    import lnb
    import lnb_kernels
    from lnb_kernels import _extension, _native

    for package in (lnb, lnb_kernels):
        assert "site-packages" in Path(package.__file__).parts, package.__file__
    assert _native.failure() is None
    assert _extension.build_info()["built"] is True
