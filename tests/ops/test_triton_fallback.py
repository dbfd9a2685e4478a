"""A Triton kernel that does not compile: the reference takes over, with one warning that names it and the right result."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton_support import DEVICE

from lnb_kernels import _backend
from lnb_kernels._triton import gram, launch
from lnb_kernels.conv2d import triton_matvec, triton_patches
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.cov_matvec import triton_kernel as cov_kernel
from lnb_kernels.newton_schulz import triton_kernel as newton_kernel
from lnb_kernels.pcg import triton_kernel as pcg_kernel
from lnb_kernels.pcg import triton_phases

CONV = Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1).encode()
QUINTIC = [3.4, -4.8, 2.0]
GRAM = ("gram_kernel",)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def moment() -> torch.Tensor:
    x = rand(40, 9)
    return x.t() @ x


# The arguments of each op, the first of which decides on the backend.
ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "second_moment": lambda: (rand(700, 20), None),
    "linear_backward": lambda: (rand(700, 7), rand(700, 20), rand(7, 20), [True] * 4),
    "cov_matvec": lambda: (rand(50, 20), rand(3, 21), 0.1),
    "conv2d_second_moment": lambda: (rand(2, 3, 6, 5), CONV),
    "conv2d_cov_matvec": lambda: (rand(2, 3, 6, 5), rand(2, 28), 0.1, CONV),
    "pcg": lambda: (moment(), rand(5, 9), None, None, None, 2, 0.1, "layer", 2),
    "newton_schulz": lambda: (rand(2, 20, 30) / 30, QUINTIC, 2),
    "newton_schulz_root": lambda: (torch.eye(20, device=DEVICE).expand(2, 20, 20) / 5, QUINTIC, 2),
}
KERNELS: list[tuple[str, Any, str]] = [
    *((op, gram, kernel) for op in ("second_moment", "linear_backward") for kernel in GRAM),
    ("cov_matvec", cov_kernel, "cov_matvec_kernel"),
    ("cov_matvec", cov_kernel, "finish_kernel"),
    ("conv2d_second_moment", triton_patches, "patch_gram_kernel"),
    ("conv2d_cov_matvec", triton_matvec, "patch_matvec_kernel"),
    ("conv2d_cov_matvec", cov_kernel, "finish_kernel"),
    ("pcg", triton_phases, "pcg_product_kernel"),
    ("pcg", triton_phases, "pcg_update_kernel"),
    ("newton_schulz", gram, "gram_kernel"),
    ("newton_schulz_root", gram, "gram_kernel"),
]


def equal(left: Any, right: Any) -> bool:
    left, right = ([value] if isinstance(value, torch.Tensor) else list(value) for value in (left, right))
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def inside_triton(source: str) -> dict[str, Any]:
    """Functions of this source, whose frames are those of a module of Triton's."""
    names: dict[str, Any] = {"__name__": "triton.compiler.compiler"}
    exec(source, names)
    return names


COMPILER = inside_triton("""
def rejects():
    raise RuntimeError("PassManager::run failed")

def calls(function):
    return function()

class Broken:
    def __getitem__(self, grid):
        rejects()

    def warmup(self, *args, grid, **options):
        rejects()
""")


@pytest.mark.parametrize(("op", "module", "kernel"), KERNELS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_reference_takes_over_once(op: str, module: Any, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of an op's kernels fails: also after others have run, and also where the result replaces the input."""
    given = ARGUMENTS[op]()
    expected = [value.clone() if isinstance(value, torch.Tensor) else value for value in given]
    route = _backend.routes()[op]
    monkeypatch.setattr(
        _backend, "candidate", lambda asked, *_: "triton" if asked is route and not route.broken else "reference"
    )
    result = route.reference(*expected)
    monkeypatch.setattr(newton_kernel, "symmetric_products_pay", lambda size: True)
    monkeypatch.setattr(pcg_kernel, "one_launch_pays", lambda *_: False)
    monkeypatch.setattr(module, kernel, COMPILER["Broken"]())
    monkeypatch.setattr(route, "broken", {})
    monkeypatch.setattr(_backend, "_reported", set())
    with pytest.warns(RuntimeWarning, match=f"'{op}' cannot run here.*does not compile") as caught:
        actual = _backend.call(op, given[0], *given)
    assert len(caught) == 1
    assert "PassManager::run failed" in str(caught[0].message)
    assert "remedy" in str(caught[0].message)
    assert equal(given[0], expected[0])
    if result is not None:
        assert equal(actual, result)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = _backend.call(op, given[0], *given)
    if result is not None:
        assert equal(again, result)


def fails(error: Exception) -> Any:
    """What raises it in this package's own code."""
    own: dict[str, Any] = {"__name__": "lnb_kernels.second_moment.triton_kernel", "error": error}
    exec("def run(call=None):\n    if call is not None:\n        return call()\n    raise error", own)
    return own["run"]


FAULTS = [
    TypeError("x"), ValueError("x"), AttributeError("x"), NameError("x"), AssertionError("x"), KeyError("x"), IndexError("x"),
    ZeroDivisionError("x"), RuntimeError("x"), NotImplementedError("x"), ImportError("x", name="lnb_kernels._triton.gram"),
]  # fmt: skip


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_fault_of_this_packages_own_code_is_not_a_kernel_that_does_not_compile(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Triton has called it, as it calls a grid's function."""
    route = _backend.OpRoutes("test_fault", lambda x: x, {"triton": "nowhere:nothing"})
    monkeypatch.setitem(_backend.routes(), "test_fault", route)
    monkeypatch.setattr(_backend, "candidate", lambda *_: "reference" if route.broken else "triton")
    for kernel in (fails(error), lambda *_: COMPILER["calls"](fails(error))):
        route.loaded["triton"] = launch.compiles_or_unavailable("test")(kernel)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(type(error)) as caught:
                _backend.call("test_fault", torch.ones(1), None)
        assert caught.value is error
        assert not route.broken


def no_file() -> None:
    open("/nowhere/cache")  # noqa: SIM115


@pytest.mark.parametrize(
    "kernel",
    [
        COMPILER["rejects"],
        functools.partial(COMPILER["calls"], no_file),  # its cache cannot be written
        functools.partial(__import__, "no_such_compiler"),
    ],
    ids=["compiler", "cache", "missing package"],
)
def test_what_triton_cannot_do_is(kernel: Any) -> None:
    own = fails(RuntimeError())
    with pytest.raises(_backend.KernelUnavailable, match="Triton kernel test does not compile here"):
        launch.compiles_or_unavailable("test")(lambda: own(kernel))()


def test_a_module_of_this_package_that_does_not_import_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("lnb_kernels._triton.gram", ImportError), ("triton", _backend.KernelUnavailable)):

        def broken(module: str, name: str = name) -> None:
            raise ImportError("cannot import name 'x'", name=name)

        monkeypatch.setattr(_backend.importlib, "import_module", broken)
        with pytest.raises(expected):
            _backend.load(_backend.OpRoutes("test", lambda x: x, {"triton": "a:b"}), "triton")


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("torch.backends.cuda.matmul.fp32_precision = setting", ("ieee", "tf32", "none")),
        ("torch.set_float32_matmul_precision(setting)", ("highest", "high", "highest")),
    ],
    ids=["new", "old"],
)
def test_every_way_to_set_the_precision_of_products_is_read(way: str, settings: tuple[str, ...]) -> None:
    """In a process of its own: the settings are the process's, and once one way was taken the other cannot be read."""
    code = f"""
import torch
from lnb_kernels._triton.arch import ARCHS
from lnb_kernels._triton.precision import input_precision
for setting in {settings}:
    {way}
    print(input_precision(ARCHS["sm_90"]), input_precision(ARCHS["gfx942"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tf32 ieee" if setting in ("tf32", "high") else "tf32x3 ieee" for setting in settings
    ]
