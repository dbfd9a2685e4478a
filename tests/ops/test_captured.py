"""Constants on a device: cached, kept where a captured CUDA graph reads them, and never made while one is captured."""

from __future__ import annotations

import ast
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lnb
import lnb_kernels
from lnb.statistics import arenas
from lnb_kernels import _captured
from lnb_kernels._captured import device_constants
from lnb_kernels.conv2d import shifts
from lnb_kernels.conv2d.geometry import geometry

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a graph is being captured: the last of the list."""
    now = [False]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: now[-1])
    monkeypatch.setattr(_captured, "_read_by_graphs", {})
    return now


@device_constants(maxsize=2)
def numbers(count: int, device: torch.device) -> tuple[Tensor, int]:
    return torch.arange(count, device=device), count


@pytest.mark.parametrize("capturing", [True, False])
def test_constants_live_as_long_as_graphs(capture: list[bool], capturing: bool) -> None:
    first = weakref.ref(numbers(5, CPU)[0])
    capture.append(capturing)
    assert numbers(5, CPU)[0] is first()
    capture.append(False)
    assert numbers(6, CPU)[0] is numbers(6, CPU)[0]
    assert numbers(5, CPU)[0] is first()  # used last
    numbers(7, CPU)
    assert numbers(5, CPU)[0] is first()
    numbers(8, CPU), numbers(9, CPU)
    gc.collect()
    assert (first() is not None) is capturing


def test_nothing_is_made_on_a_device_while_a_graph_is_captured(capture: list[bool]) -> None:
    before = numbers(10, META)[0]
    capture.append(True)
    assert numbers(10, META)[0] is before
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"tests?.*a CUDA graph is being captured.*\(numbers\).*run a few steps"):
            numbers(11, META)
    assert torch.equal(numbers(11, CPU)[0], torch.arange(11))  # a part of the model on the CPU
    capture.append(False)
    made = numbers(11, META)[0]
    capture.append(True)
    assert numbers(11, META)[0] is made


def test_constants_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        assert not numbers(12, CPU)[0].is_inference()


def step() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 36, 4))
    optimizer = lnb.LNB(net, lr=0.01)
    net(torch.randn(2, 2, 6, 6)).square().mean().backward()
    with optimizer.captured():
        optimizer.step()
    shifts.conv2d_second_moment_by_shifts(torch.randn(2, 3, 8, 8), geometry("test", 3, 1, 1, 1, 1))


def test_what_a_step_reads_is_kept(capture: list[bool]) -> None:
    step()
    assert not _captured._read_by_graphs
    capture.append(True)
    step()
    assert len(_captured._read_by_graphs) > 3  # of the step and of the convolution


def test_what_a_step_reads_is_not_made_on_an_accelerator(capture: list[bool]) -> None:
    capture.append(True)
    for call in (
        lambda: arenas.constant((1.5, 2.5), META),
        lambda: arenas.owners_of((2, 3), META),
        lambda: arenas.Selection(torch.empty(9, device=META), ((0, 2), (5, 6))),
        lambda: shifts.conv2d_second_moment_by_shifts(
            torch.empty(2, 3, 9, 9, device=META), geometry("test", 3, 1, 1, 1, 1)
        ),
    ):
        with pytest.raises(RuntimeError, match="a CUDA graph is being captured"):
            call()


def test_no_other_cache_holds_tensors() -> None:
    """``functools`` knows nothing of graphs. Beside the tests above: it finds a cache that they do not know of."""
    packages = (Path(lnb.__file__).parent, Path(lnb_kernels.__file__).parent)
    cached = []
    for file in (file for package in packages for file in package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator).startswith("functools.") and "cache" in ast.unparse(decorator)
                for decorator in node.decorator_list
            ):
                cached.append(node.name)
                assert node.returns is not None
                assert "Tensor" not in ast.unparse(node.returns), f"{file.name}: {node.name}"
    assert "gram_plan" in cached
