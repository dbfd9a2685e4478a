"""A Triton kernel that does not compile: the reference takes over, with one warning that names it and the right result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton_support import DEVICE

from lnb_kernels import _backend
from lnb_kernels._triton import gram
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
    "second_moment_ema_": lambda: (torch.eye(21, device=DEVICE), rand(700, 20), 0.75, None),
    "linear_backward": lambda: (rand(700, 7), rand(700, 20), rand(7, 20), [True] * 4),
    "cov_matvec": lambda: (rand(50, 20), rand(3, 21), 0.1),
    "conv2d_second_moment": lambda: (rand(2, 3, 6, 5), CONV),
    "conv2d_cov_matvec": lambda: (rand(2, 3, 6, 5), rand(2, 28), 0.1, CONV),
    "pcg": lambda: (moment(), rand(5, 9), None, None, None, 2, 0.1, "layer", 2),
    "newton_schulz": lambda: (rand(2, 20, 30) / 30, QUINTIC, 2),
    "newton_schulz_root": lambda: (torch.eye(20, device=DEVICE).expand(2, 20, 20) / 5, QUINTIC, 2),
}
KERNELS: list[tuple[str, Any, str]] = [
    *((op, gram, kernel) for op in ("second_moment", "second_moment_ema_", "linear_backward") for kernel in GRAM),
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


class Broken:
    """A kernel that the compiler rejects."""

    def __getitem__(self, grid: Any) -> Any:
        raise RuntimeError("PassManager::run failed")

    def warmup(self, *args: Any, grid: Any, **options: Any) -> Any:
        return self[grid]


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
    monkeypatch.setattr(module, kernel, Broken())
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
