"""triton-viz's sanitizer on the kernels that it can model.

It decides symbolically, so it has to know every operation of a kernel. It does not know square tiles transposed for ``tl.dot``
(all kernels of products) nor branches on quotients (the order of tiles, :func:`lower_tile`): these kernels are covered by
``triton_sanitizer.py``, which compares each address with the memory of its tensor, in every test that runs a kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton_viz", reason="triton-viz is not installed")
CHECK = Path(__file__).resolve().parents[1] / "triton_viz_check.py"


def check(kernel: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.run(
        [sys.executable, str(CHECK), kernel], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kernel", ["pcg_product_kernel", "pcg_update_kernel", "finish_kernel"])
def test_no_access_can_be_out_of_bounds(kernel: str) -> None:
    done = check(kernel)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("clean\n")


def test_an_access_out_of_bounds_is_reported() -> None:
    done = check("careless_kernel")
    assert done.returncode == 1
    assert "ILLEGAL MEMORY ACCESS" in done.stdout
