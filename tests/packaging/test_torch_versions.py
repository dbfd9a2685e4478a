"""One wheel for every torch: built once, and exercised in a fresh environment for each version of torch.

`LNB_TORCH_VERSIONS` names them, separated by spaces, as pip takes them ("2.13.0+cpu 2.10.0"); the default is the one that is
installed here. pip must be able to get each with the usual settings (`PIP_FIND_LINKS`, `PIP_INDEX_URL`). A version without
"+cpu" is taken for a CUDA build (1 GB), which is used without NVIDIA's packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cuda_stubs
import pytest
import torch

VERSIONS = os.environ.get("LNB_TORCH_VERSIONS", torch.__version__).split()

IMPORTED_BY_TORCH = ("typing_extensions", "filelock", "fsspec", "jinja2", "networkx", "sympy")

# Every native kernel against its reference, and an optimizer step, in the environment's own torch.
EXERCISE = """
import sys
import torch
import lnb, lnb_kernels as lk
from lnb_kernels import _native
assert torch.__version__.startswith(sys.argv[1]), torch.__version__
assert _native.failure() is None, _native.failure()
x, image = torch.randn(700, 33), torch.randn(4, 20, 9, 8)
def results():
    average = [torch.ones(5000)]
    lk.multi_tensor.ema_combined_(average, [torch.full((5000,), 3.0)], 0.5, torch.ones(1), 0.0)
    return [lk.second_moment(x), lk.second_moment(x.bfloat16()), lk.conv2d_second_moment(image, 3, padding=1),
            lk.multi_tensor.dot(average, average), average[0]]
lk.set_backend("native")
native = results()
lk.set_backend("reference")
for ours, plain in zip(native, results()):
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)
lk.set_backend("auto")
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
rows = torch.randn(64, 8)
target, losses = rows.sum(1, keepdim=True), []
optimizer = lnb.LNB(model, lr=0.02)
for _ in range(20):
    optimizer.zero_grad()
    loss = (model(rows) - target).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
print("works with", torch.__version__)
"""


def call(*command: object, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"LNB_NATIVE": "required"} | variables
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    root = Path(__file__).resolve().parents[2]
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, root)
    [built] = out.glob("*.whl")
    return built


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_wheel_works_with(version: str, wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    variables = {}
    if version.endswith("+cpu"):
        call(python, "-m", "pip", "install", "--quiet", f"torch=={version}", "numpy")
    else:
        call(python, "-m", "pip", "install", "--quiet", "--no-deps", f"torch=={version}")
        call(python, "-m", "pip", "install", "--quiet", "numpy", *IMPORTED_BY_TORCH)
        [site_packages] = (tmp_path / "env" / "lib").glob("python*/site-packages")
        cuda_stubs.install(site_packages)
        variables = cuda_stubs.ENVIRONMENT
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    assert f"works with {version}" in call(python, "-c", EXERCISE, version, **variables)
