"""The CUDA module: built where nvcc is, loadable without a driver, and every way to lack it has a cause and a remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lnb_kernels as lk
from lnb_kernels import _backend, _cuda, _extension

PACKAGE = Path(lk.__file__).parent
needs_cuda_module = pytest.mark.skipif(_cuda.failure() is not None, reason=str(_cuda.failure()))


NVCC = shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin:{os.environ['PATH']}")
CUDA_HOME = str(Path(NVCC).resolve().parents[1]) if NVCC else ""
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


ENVIRONMENT = ("CUDA_HOME", "VIRTUAL_ENV")


def configure(project: Path, **settings: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run CMake on the project, without compiling."""
    import cmake
    import pybind11

    build = project.parent / "cmake"
    options = {"Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir(), **settings}
    command = [str(Path(cmake.CMAKE_BIN_DIR, "cmake")), "-S", str(project), "-B", str(build), "-G", "Ninja"]
    environment = {"PATH": "/usr/bin:/bin"} | {name: settings.get(name, "") for name in ENVIRONMENT}
    done = subprocess.run(
        [*command, *(f"-D{name}={value}" for name, value in options.items() if name not in ENVIRONMENT),
         f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=str(Path(sys.executable).parent)) or 'ninja'}"],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done, build / "build_info.json"


def compiler(folder: Path, script: str) -> str:
    """A CUDA_HOME whose nvcc is this shell script."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n" + script)
    nvcc.chmod(0o755)
    return str(folder)


OLD = 'echo "Cuda compilation tools, release 11.8, V11.8.89"\n'
BROKEN = (
    'case "$1" in --version) echo "release 13.0, V13.0.88";; *) echo "fatal error: no headers" >&2; exit 1;; esac\n'
)


@pytest.mark.parametrize(
    ("script", "reason"), [("exit 1\n", "does not run"), (OLD, "nvcc 11.8"), (BROKEN, "fatal error: no headers")]
)
def test_a_compiler_that_does_not_serve_leaves_its_reason(project: Path, script: str, reason: str) -> None:
    home = compiler(project.parent / "cuda", script)
    done, info = configure(project, LNB_CUDA="auto", CUDA_HOME=home)
    assert done.returncode == 0, done.stdout + done.stderr
    cuda = json.loads(info.read_text())["cuda"]
    assert cuda["built"] is False
    assert reason in cuda["reason"]
    assert f"{home}/bin/nvcc" in cuda["reason"]


def test_a_compiler_that_pip_installed_is_found_from_an_isolated_build(project: Path) -> None:
    """By the environment that is active, whose packages the build's own Python does not see; the newest release first."""
    packages = project.parent / "env" / "lib" / "python3.11" / "site-packages" / "nvidia"
    homes = [compiler(packages / release, OLD) for release in ("cuda_nvcc", "cu13", "cu14")]
    (packages / "cu15" / "bin").mkdir(parents=True)  # another package of that release, without nvcc
    environment = {"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(project.parent / "env")}
    script = project / "csrc" / "cuda" / "find_nvcc.py"
    done = subprocess.run(
        [sys.executable, "-S", str(script)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [f"{home}/bin/nvcc" for home in (homes[2], homes[1], homes[0])]
    done, info = configure(
        project, LNB_CUDA="auto", VIRTUAL_ENV=environment["VIRTUAL_ENV"], CMAKE_FIND_USE_CMAKE_SYSTEM_PATH="OFF"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"nvcc 11.8 ({homes[2]}/bin/nvcc) is older" in json.loads(info.read_text())["cuda"]["reason"]


def test_cuda_on_demand_fails_where_nvcc_does_not_serve(project: Path) -> None:
    done, _ = configure(project, LNB_CUDA="on", CUDA_HOME=compiler(project.parent / "cuda", OLD))
    assert done.returncode != 0
    assert "LNB_CUDA=on, but nvcc 11.8" in done.stderr


def test_cuda_off(project: Path) -> None:
    done, info = configure(project, LNB_CUDA="off")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(info.read_text())["cuda"] == {
        "built": False, "reason": "LNB_CUDA=off when the package was built"
    }  # fmt: skip


def test_cuda_unknown(project: Path) -> None:
    done, _ = configure(project, LNB_CUDA="maybe")
    assert done.returncode != 0
    assert "LNB_CUDA=maybe is not allowed; choose auto, on or off" in " ".join(done.stderr.split())


@needs_nvcc
def test_architectures_are_those_asked_for(project: Path) -> None:
    done, info = configure(project, LNB_CUDA="on", LNB_CUDA_ARCHS="90-virtual;86-real", CUDA_HOME=CUDA_HOME)
    assert done.returncode == 0, done.stdout + done.stderr
    cuda = json.loads(info.read_text())["cuda"]
    assert cuda["built"] is True
    assert cuda["archs"] == "90-virtual 86-real"


@needs_nvcc
def test_unknown_architectures_are_named(project: Path) -> None:
    done, info = configure(project, LNB_CUDA="auto", LNB_CUDA_ARCHS="12", CUDA_HOME=CUDA_HOME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12" in json.loads(info.read_text())["cuda"]["reason"]
    done, _ = configure(project, LNB_CUDA="on", LNB_CUDA_ARCHS="12", CUDA_HOME=CUDA_HOME)
    assert done.returncode != 0
    assert "12" in done.stderr


@needs_cuda_module
def test_module_needs_no_cuda_library() -> None:
    [file] = PACKAGE.glob("_cuda_module*.so")
    libraries = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in libraries
    assert "not found" not in libraries


@needs_cuda_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver")
def test_without_a_driver_the_module_says_so() -> None:
    failure = _cuda.failure_on(0)
    assert failure is not None
    assert "the CUDA kernels do not run on device 0: cuCtxGetCurrent failed" in failure
    assert "remedy: update the NVIDIA driver" in failure
    with pytest.raises(_backend.KernelUnavailable, match="device 0"):
        _cuda.module(torch.device("cuda", 0))


PROBE = """
import sys, warnings, torch, lnb_kernels as lk
from lnb_kernels import _backend, _cuda
assert "lnb_kernels._cuda_module" not in sys.modules, "loaded at import"
print(_cuda.failure())
print(lk.report().as_dict()["cuda"])
# CPU tensors on the route of a GPU's: the kernel is given up, the reference takes over.
route = _backend.routes()["multi_tensor_dot"]
route.kernels["native"] = route.kernels["native-cuda"]
_cuda._index = lambda device: 0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print([lk.multi_tensor.dot([torch.ones(5)], [torch.ones(5)]).item() for _ in range(2)])
print([str(w.message) for w in caught if "lnb_kernels" in str(w.message)])
print(lk.report())
"""


@pytest.mark.parametrize(
    ("info", "cause"),
    [
        ({"built": True, "cuda": {"built": False, "reason": "nvcc is not there"}}, "not built: nvcc is not there"),
        ({"built": False, "reason": "no compiler was found"}, "not built: no compiler was found"),
        ({"built": True, "cuda": {"built": True}}, "is missing although it was built"),
        ({"built": True, "cuda": {"built": True}, "bytes": {"_cuda_module": 7}}, "has 6 bytes instead of 7"),
    ],
)
def test_without_the_module_the_reference_takes_over_and_the_cause_is_told(
    tmp_path: Path, run, info: dict[str, object], cause: str
) -> None:
    copy = tmp_path / "site" / "lnb_kernels"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "_cuda_module*"))
    (copy / "_build_info.json").write_text(json.dumps(info))
    if "bytes" in info:
        (copy / "_cuda_module.so").write_bytes(b"broken")
    done = run("-c", PROBE, env={"PYTHONPATH": str(copy.parent)})
    assert done.returncode == 0, done.stderr
    failure, state, products, warned, report = done.stdout.split("\n", 4)
    assert cause in failure
    assert "remedy: " in failure
    assert "'loaded': False" in state
    assert products == "[5.0, 5.0]"
    assert warned.count("the reference takes over") == 1
    assert cause in warned
    assert f"CUDA module: not loaded: {failure}" in report


def test_gpu_tensors_take_the_cuda_kernel_first() -> None:
    device = torch.device("cuda", 0)
    routes = _backend.routes()
    multi_tensor = ("multi_tensor_ema_combined_", "multi_tensor_apply_", "multi_tensor_dot")
    for name in (*multi_tensor, "pcg_rows", "pcg_vectors", "spd_inverse", "newton_schulz_root"):
        assert _backend.candidate(routes[name], device, torch.float32, "auto") == "native-cuda", name
        assert _backend.candidate(routes[name], device, torch.float32, "native") == "native-cuda", name
        assert _backend.candidate(routes[name], device, torch.float32, "reference") == "reference", name
    assert _backend.candidate(routes["pcg"], device, torch.float32, "auto") == "triton"
    assert _backend.candidate(routes["multi_tensor_dot"], torch.device("cpu"), torch.float32, "auto") == "native"


def test_kernels_get_the_device_and_its_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        cuda_stream = 1234

    class OnGpu:
        device = torch.device("cuda", 3)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream if device == OnGpu.device else None)
    assert _cuda.where(OnGpu) == (3, 1234)


def test_report_tells_the_build() -> None:
    if _cuda.failure() is None:
        assert lk.report().cuda["archs"] == _extension.build_info()["cuda"]["archs"]
    else:
        assert lk.report().cuda == {"loaded": False, "failure": _cuda.failure()}
