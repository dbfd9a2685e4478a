"""The meter of a training step on a GPU: its budgets hold, and it counts what is really called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.append(str(BENCH))  # last: files there have names of modules elsewhere

import device_step  # noqa: E402
from cusim.simulated import cuda_kernels_on_cpu  # noqa: E402
from meter.counting import counting  # noqa: E402
from meter.models import CASES  # noqa: E402
from meter.operators import tables  # noqa: E402
from meter.traffic import cuda_traffic  # noqa: E402

import lnb  # noqa: E402
from lnb_kernels import _cuda, multi_tensor  # noqa: E402


def test_no_case_exceeds_its_budgets(tmp_path: Path) -> None:
    """In a process of its own: Triton's kernels are recorded as they would be compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH / "device_step.py"), "--json", str(figures)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert list(found) == [*CASES, *(case + device_step.WITHOUT for case in device_step.WITHOUT_MODULE)]
    for name, most in json.loads(device_step.BUDGETS.read_text())["GPT-2 124M"].items():  # what is exceeded is told
        assert len(device_step.over_budget("GPT-2 124M", {**found["GPT-2 124M"], name: most + 1})) == 1, name


def test_the_page_shows_the_kept_figures() -> None:
    kept = json.loads((BENCH / "results" / "device_step.json").read_text())
    assert device_step.table(kept) in (BENCH.parent / "docs" / "gpu.md").read_text()


def test_launches_bytes_memory_and_reads_are_those_that_are_made() -> None:
    x = torch.zeros(1000, device="meta")
    with counting() as counter:
        y = x * 2
        z = torch.cat([x, y])
        x.add_(1)
        multi_tensor.apply_([x], [y], torch.ones(1, device="meta"), 0.1, 0.0)
        del y
        bool((z > 0).any())
        record = counter.finish()
    assert [launch.name for launch in record.launched] == [
        "aten.mul.Tensor", "aten.cat.default", "aten.add_.Tensor", "aten.ones.default", "multi_tensor.apply", "aten.gt.Scalar",
        "aten.any.default",
    ]  # fmt: skip
    assert [launch.bytes for launch in record.launched][:3] == [8000, 16000, 8000]
    assert record.launched[4].bytes == 12000
    assert record.borrowed >= 4000
    assert record.host_reads == ["aten._local_scalar_dense.default"]


def test_an_unknown_operator_is_an_error() -> None:
    with counting(), pytest.raises(NotImplementedError, match=r"nothing is known of aten.erfinv"):
        torch.zeros(3, device="meta").erfinv()


def test_tables_of_multi_tensor_kernels() -> None:
    assert tables([torch.empty(10)] * 110, 1) == 1
    assert tables([torch.empty(10)] * 111, 1) == 2
    assert tables([torch.empty(65536 * 320 + 1, device="meta")], 1) == 2


@pytest.mark.parametrize("bias", [False, True])
def test_the_fused_kernels_move_what_the_meter_says(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the simulator, which counts every access, also those to blocks of factors that a GPU has in its caches."""
    model = nn.Sequential(nn.Linear(576, 96, bias=bias), nn.LayerNorm(96))
    optimizer = lnb.LNB(model, block_size=96)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(64, 576)).square().mean().backward()
        with cuda_kernels_on_cpu() as simulator:
            said: dict[str, int] = {}
            seen: dict[str, int] = {}
            watch(simulator, said, seen, monkeypatch)
            optimizer.step()
    # Every thread of the finish reads numbers that a cache has for all of them: it moves little beside.
    for name, most in (("fused_direct", 1.5), ("fused_apply", 1.25)):
        assert 0.95 * said[name] <= seen[name] <= most * said[name], name


def watch(simulator: Any, said: dict[str, int], seen: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    module = simulator.module

    class Watched:
        def __getattr__(self, name: str) -> Any:
            value = getattr(module, name)
            if not name.startswith("fused_"):
                return value

            def call(*args: Any) -> Any:
                before = sum(simulator.traffic)
                result = value(*args)
                seen[name] = sum(simulator.traffic) - before
                said[name] = cuda_traffic(name, args)[0]
                return result

            return call

    monkeypatch.setattr(_cuda, "module", lambda device: Watched())
