"""Measuring a device's rates: about a second, a few sizes of everything that a step consists of."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import lnb_kernels as lk
from lnb.planning.rates import Curve, Rates

BUDGET = 1.2
"""Seconds after which the sizes still unmeasured are left out, but for the first of each kind."""

_EACH = 0.02  # seconds spent on one size
_MATMUL_SIZES = (48, 256, 768)


def key(device: torch.device) -> dict[str, str]:
    """What the rates depend on."""
    accelerator = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if accelerator else f"{device.type} {_processor()}",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "kernels": _kernels(device),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@torch.no_grad()
def measure(device: torch.device) -> Rates:
    """Measure ``device``, for about :data:`BUDGET` seconds at most, once its libraries are loaded.

    Random numbers come from a generator of their own: the program's sequence of them is not touched.
    """
    generator = torch.Generator(device).manual_seed(0)
    dtypes = (torch.float32, torch.bfloat16)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def curve(
        sizes: tuple[int, int, int], flops: Callable[[int], float], make: Callable[[int], Callable[[], object]]
    ) -> Curve:
        small, middle, large = sizes
        points: list[tuple[int, float]] = []
        for size in (middle, large, small):  # one is enough, if there is no time for more
            if not points or time.perf_counter() < deadline:
                points.append((size, flops(size) / _seconds(make(size), device)))
        return tuple(sorted(points))

    def matmul(dtype: torch.dtype) -> Callable[[int], Callable[[], object]]:
        def make(n: int) -> Callable[[], object]:
            a, b = draw(n, n, dtype=dtype), draw(n, n, dtype=dtype)
            return lambda: a @ b

        return make

    def gram(dtype: torch.dtype) -> Callable[[int], Callable[[], object]]:
        def make(n: int) -> Callable[[], object]:
            x = draw(2 * n, n, dtype=dtype)
            return lambda: lk.second_moment(x)

        return make

    def batched(n: int) -> Callable[[], object]:
        a, b = draw(8, n, n), draw(8, n, n)
        return lambda: a @ b

    def factor(n: int) -> Callable[[], object]:
        x = draw(2 * n, n)
        matrix = x.mT @ x / (2 * n) + torch.eye(n, device=device)
        return lambda: torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix).L)

    def convolution(channels: int) -> Callable[[], object]:
        x, w = draw(4, channels, 32, 32), draw(channels, channels, 3, 3)
        y = F.conv2d(x, w, padding=1)

        def run() -> None:
            F.conv2d(x, w, padding=1)
            args = (None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, True, False))
            torch.ops.aten.convolution_backward(y, x, w, *args)

        return run

    def conv_gram(channels: int) -> Callable[[], object]:
        x = draw(4, channels, 32, 32)
        return lambda: lk.conv2d_second_moment(x, 3, padding=1)

    for make in (gram(torch.float32), factor, convolution, conv_gram):
        make(4)()  # loads what is loaded with the first call
    deadline = time.perf_counter() + BUDGET
    pixels = 4 * 32 * 32
    curves: dict[str, Curve] = {}
    curves["matmul/float32"] = curve(_MATMUL_SIZES, lambda n: 2 * n**3, matmul(torch.float32))
    curves["gram/float32"] = curve(_MATMUL_SIZES, lambda n: 2 * n**3, gram(torch.float32))
    curves["batched/float32"] = curve((16, 64, 160), lambda n: 16 * n**3, batched)
    curves["factor/float32"] = curve((32, 160, 512), lambda n: n**3, factor)
    # (sqrt(d m) = 3 C) for a 3x3 convolution of C to C channels
    curves["conv/float32"] = tuple(
        (3 * size, rate) for size, rate in curve((8, 32, 64), lambda c: 54 * c * c * pixels, convolution)
    )
    curves["conv_gram/float32"] = curve((8, 32, 64), lambda c: 26 * c * c * pixels, conv_gram)
    for dtype in dtypes[1:]:
        name = str(dtype).removeprefix("torch.")
        curves[f"matmul/{name}"] = curve(_MATMUL_SIZES, lambda n: 2 * n**3, matmul(dtype))
        curves[f"gram/{name}"] = curve(_MATMUL_SIZES, lambda n: 2 * n**3, gram(dtype))
    small, large = draw(4, 4), draw(1 << 22)
    moved = 3 * large.numel() * large.element_size()  # two read, one written
    return Rates(
        overhead=_seconds(lambda: torch.lerp(small, small, 0.5), device),
        bandwidth=moved / _seconds(lambda: torch.add(large, large, alpha=0.5), device),
        curves=curves,
        source="measured now",
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the least of some rounds, each of as many calls as can be timed."""
    start = _now(device)
    run()
    first = _now(device) - start  # includes loading code: an upper bound
    calls = max(1, min(64, int(_EACH / 8 / max(first, 1e-7))))
    best = first
    stop = time.perf_counter() + _EACH
    while True:
        start = _now(device)
        for _ in range(calls):
            run()
        best = min(best, (_now(device) - start) / calls)
        if time.perf_counter() > stop:
            return max(best, 1e-9)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _kernels(device: torch.device) -> str:
    """The version of the kernels, and which of them serve the ops that are measured: others have other rates."""
    report = lk.report()
    ops = ("second_moment", "conv2d_second_moment")
    serving = [f"{s.op} {s.backend}" for s in report.ops if s.op in ops and s.device == device.type]
    return ", ".join([report.versions["lnb-kernels"], *sorted(serving)])
