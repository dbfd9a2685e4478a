"""Writes ``docs/support.md`` from what the tests check: their parameters, their names, and the table of kernels.

python docs/tools/support.py
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import torch
from torch import nn

from lnb.layers.unclaimed import reason_for
from lnb_kernels import _backend

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "support.md"

UNCLAIMED = (
    nn.Embedding, nn.EmbeddingBag, nn.Conv3d, nn.ConvTranspose2d, nn.LSTM, nn.LSTMCell, nn.Bilinear, nn.LayerNorm, nn.BatchNorm2d,
    nn.PReLU,
)  # fmt: skip

WAYS = {
    "several ranks (`DistributedDataParallel`, gloo)": "tests/optimizer/test_ranks.py",
    "shards (`fully_shard`, `ColwiseParallel`, gloo)": "tests/optimizer/test_shards.py",
    "checkpoints of 1, 2, 4 and 8 ranks (gloo)": "tests/optimizer/test_resume_ranks.py",
    "`torch.distributed.checkpoint`": "tests/optimizer/test_distributed_checkpoint.py",
    "`Conv1D` of Transformers": "tests/optimizer/test_transposed.py",
    "CUDA graphs, replayed on a CPU": "tests/optimizer/test_graphed_step.py",
    "export, tracing and compilation": "tests/optimizer/test_export.py",
    "bfloat16 and float16 parameters with masters": "tests/optimizer/test_master_weights.py",
}

TRAINERS = {
    "accelerate": "accelerate", "Lightning": "lightning", "Transformers": "transformers", "timm": "timm", "peft": "peft",
    "torchtitan": "torchtitan", "Ray Train": "ray",
}  # fmt: skip

HEAD = """# Support

<!-- Written by docs/tools/support.py from the tests; do not edit. -->

Every entry of this page is a test, or is read from the code that the tests run. The tests need no GPU: for GPUs the page says by
which means a kernel is checked. **No kernel has run on a GPU yet.**
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rows])


def layers() -> str:
    """Layers and precisions that are trained, from the parameters of the test."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from support_cells import LAYERS, PRECISIONS
    finally:
        sys.path.pop(0)
    rules = {"second moment": "second moment of inputs", "adamw": "Adam's rule"}
    rows = [[name, rules[layer.metric], *("✓" for _ in PRECISIONS)] for name, layer in LAYERS.items()]
    return table(["layer", "metric", *PRECISIONS], rows)


def unclaimed() -> str:
    """Why other layers follow Adam's rule: what ``coverage()`` says."""
    rows = [[f"`nn.{cls.__name__}`", reason_for(cls).partition(": ")[2]] for cls in UNCLAIMED]
    return table(["layer", "why it is not claimed"], rows)


def architectures() -> dict[str, list[str]]:
    """For which GPUs each op's Triton kernels are compiled in the tests, from the committed table."""
    found: dict[str, set[str]] = {}
    for row in json.loads((ROOT / "bench" / "codegen.json").read_text())["rows"]:
        parts = row.split("/")
        found.setdefault(parts[0], set()).add(parts[-1])
    return {op: sorted(names) for op, names in found.items()}


def devices() -> str:
    """What runs where, and how that is checked; GPUs from the committed table of machine code."""
    compiled = sorted({name for names in architectures().values() for name in names})
    nvidia = ", ".join(name for name in compiled if name.startswith("sm"))
    amd = ", ".join(name for name in compiled if name.startswith("gfx"))
    simulated = (
        f"executed by a simulator and by Triton's interpreter; budgets of machine code for {nvidia}; **never run**"
    )
    interpreted = f"executed by the interpreter; budgets of machine code for {amd}; **never run**"
    native = "C++ kernels for AVX2, AVX-512 and portable code; plain PyTorch where none is built"
    rows = [
        ["CPU, x86-64", native, "executed in the tests, under sanitizers by `make sanitize`"],
        ["CPU, aarch64", "the portable C++ kernels", "cross-compiled in the tests, executed by the workflow"],
        ["NVIDIA GPUs", "CUDA and Triton kernels", simulated],
        ["AMD GPUs", "Triton kernels, else plain PyTorch", interpreted],
        ["others (MPS, XPU)", "plain PyTorch", "not checked"],
    ]
    return table(["device", "what runs there", "how it is checked"], rows)


def kernels() -> str:
    """Which kernels each op has, from the registry."""
    rows = []
    for op, route in sorted(_backend.routes().items()):
        dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in route.native_dtypes))
        native = route.kernels.keys() & {"native", "native-cuda"}
        marks = ["✓" if kind in route.kernels else "" for kind in ("native", "native-cuda", "triton")]
        rows.append([f"`{op}`", "✓", *marks, dtypes if native else ""])
    return table(
        ["op", "plain PyTorch, any device", "C++, CPUs", "CUDA, NVIDIA", "Triton", "dtypes of C++ and CUDA"], rows
    )


def tests_of(path: Path) -> list[str]:
    """What the tests of a file are called, as words."""
    names = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    return [name.removeprefix("test_").replace("_", " ") for name in names if name.startswith("test_")]


def ways() -> str:
    """Ways of training that need no package, by the names of their tests."""
    rows = [[name, f"`{path}`", "; ".join(tests_of(ROOT / path))] for name, path in WAYS.items()]
    return table(["way", "tests", "what they check"], rows)


def trainers() -> str:
    """Trainers of others, by the names of their tests, at the version that is pinned."""
    pinned = dict(
        re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)", (ROOT / "requirements" / "trainers.txt").read_text(), re.M)
    )
    rows = [
        [name, pinned[package], "; ".join(tests_of(ROOT / "tests" / "integrations" / f"test_{package}.py"))]
        for name, package in TRAINERS.items()
    ]
    return table(["trainer", "version", "what the tests check"], rows)


def page() -> str:
    """The whole page."""
    return f"""{HEAD}
## Layers and precisions, on a CPU

A step of the default preset is compared with that of a float64 copy of the model (`tests/docs/test_support.py`).

{layers()}
Subclasses that keep their `forward`, all padding modes, channels-last images and frozen parts have tests in
`tests/optimizer/test_attach.py`.

## Layers that are not claimed

They follow Adam's rule. The reasons are those that `coverage()` prints.

{unclaimed()}
## Devices

{devices()}
## Kernels of each op

`lnb_kernels.report()` prints which of them serves each op on your machine, and why. Triton kernels take float32, bfloat16 and
float16; all else is plain PyTorch. [Proofs without a GPU](proofs.md) says how each kind is tested.

{kernels()}
## Ways to train

{ways()}
## Trainers

`make trainers` installs them and runs these tests; [recipes](recipes/index.md) show their use, and
[suites of others](peers.md) what of their own tests runs with LNB.

{trainers()}
What is refused for sharded models is listed under [sharded models](shards.md#what-is-refused-by-name).
"""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)}: written with torch {torch.__version__}")
