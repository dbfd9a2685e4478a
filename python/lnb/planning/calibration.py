"""Measuring a device's rates: about a second, a few sizes of everything that a step consists of."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import lnb_kernels as lk
from lnb.machine import processor
from lnb.planning.rates import KINDS, Rates

BUDGET = 1.2
"""Seconds after which the sizes still unmeasured are left out, but for the first of each kind."""

_EACH = 0.01  # seconds spent on one size, in each sweep
_SIZES = {
    "matmul": (48, 192, 512),
    "gram": (48, 192, 512),
    "batched": (16, 64, 160),
    "factor": (32, 160, 384),
    "conv": (8, 24, 64),
    "conv_gram": (8, 24, 64),
}
_MEASURED = [(kind, torch.float32) for kind in KINDS] + [("matmul", torch.bfloat16), ("gram", torch.bfloat16)]
_BATCH = 8
_IMAGES = 4


def _side(channels: int) -> int:
    """The side of the images for this number of channels: layers with few channels see large images."""
    return 64 if channels < 32 else 24


def key(device: torch.device) -> dict[str, str]:
    """What the rates depend on."""
    accelerator = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if accelerator else f"{device.type} {processor()}",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "kernels": _kernels(device),
    }


@torch.no_grad()
def measure(device: torch.device) -> Rates:
    """Measure ``device``, for about :data:`BUDGET` seconds at most, once its libraries are loaded.

    Everything is measured in two sweeps and the faster result is taken: a program beside this one is unlikely to disturb
    both. Random numbers come from a generator of their own: the program's sequence of them is not touched.
    """
    workloads = _Workloads(device)
    for kind in KINDS:
        workloads.make(kind, torch.float32, 8)()  # loads what is loaded with the first call
    deadline = time.perf_counter() + BUDGET
    points: dict[str, dict[int, float]] = {}
    for sweep in range(2):
        for rank in (1, 2, 0):  # the middle size is enough, if there is no time for more
            for kind, dtype in _MEASURED:
                if (rank == 1 and sweep == 0) or time.perf_counter() < deadline:
                    size = _SIZES[kind][rank]
                    rate = _flops(kind, size) / _seconds(workloads.make(kind, dtype, size), device)
                    curve = points.setdefault(f"{kind}/{str(dtype).removeprefix('torch.')}", {})
                    at = 3 * size if kind == "conv" else size  # sqrt(d m) of a 3x3 convolution of C to C channels
                    curve[at] = max(curve.get(at, 0.0), rate)
    small, large = workloads.draw(4, 4), workloads.draw(1 << 22)
    moved = 3 * large.numel() * large.element_size()  # two read, one written
    return Rates(
        overhead=_seconds(lambda: torch.lerp(small, small, 0.5), device),
        bandwidth=moved / _seconds(lambda: torch.add(large, large, alpha=0.5), device),
        curves={name: tuple(sorted(curve.items())) for name, curve in points.items()},
        source="measured now",
    )


def _flops(kind: str, size: int) -> float:
    """Operations of one call, counted as :data:`lnb.planning.rates.KINDS` says."""
    cube, pixel = float(size**3), float(size**2 * _IMAGES * _side(size) ** 2)
    return {
        "matmul": 2 * cube,
        "gram": 2 * cube,
        "batched": 2 * _BATCH * cube,
        "factor": cube,
        "conv": 54 * pixel,
        "conv_gram": 26 * pixel,
    }[kind]


class _Workloads:
    """What is timed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(0)

    def draw(self, *shape: int) -> torch.Tensor:
        """Normal random numbers."""
        return torch.randn(shape, generator=self._generator, device=self.device)

    def make(self, kind: str, dtype: torch.dtype, n: int) -> Callable[[], object]:
        """One call of a kind, at size ``n``."""
        made: Callable[[torch.dtype, int], Callable[[], object]] = getattr(self, f"_{kind}")
        return made(dtype, n)

    def _matmul(self, dtype: torch.dtype, n: int) -> Callable[[], object]:
        a, b = self.draw(n, n).to(dtype), self.draw(n, n).to(dtype)
        return lambda: a @ b

    def _gram(self, dtype: torch.dtype, n: int) -> Callable[[], object]:
        x = self.draw(2 * n, n).to(dtype)
        return lambda: lk.second_moment(x)

    def _batched(self, dtype: torch.dtype, n: int) -> Callable[[], object]:
        a, b = self.draw(_BATCH, n, n).to(dtype), self.draw(_BATCH, n, n).to(dtype)
        return lambda: a @ b

    def _factor(self, dtype: torch.dtype, n: int) -> Callable[[], object]:
        x = self.draw(2 * n, n).to(dtype)
        matrix = x.mT @ x / (2 * n) + torch.eye(n, dtype=dtype, device=self.device)
        return lambda: lk.spd_inverse(matrix)

    def _conv(self, dtype: torch.dtype, n: int) -> Callable[[], object]:
        x, w = self.draw(_IMAGES, n, _side(n), _side(n)).to(dtype), self.draw(n, n, 3, 3).to(dtype)
        one, y = (1, 1), F.conv2d(x, w, padding=1)

        def run() -> None:
            F.conv2d(x, w, padding=1)
            torch.ops.aten.convolution_backward(y, x, w, None, one, one, one, False, (0, 0), 1, (True, True, False))

        return run

    def _conv_gram(self, dtype: torch.dtype, n: int) -> Callable[[], object]:
        x = self.draw(_IMAGES, n, _side(n), _side(n)).to(dtype)
        return lambda: lk.conv2d_second_moment(x, 3, padding=1)


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
    """A time to take differences of: of the device, or of the one thread where there is one, which others do not delay."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _kernels(device: torch.device) -> str:
    """The version of the kernels, and which of them serve the ops that are measured: others have other rates."""
    report = lk.report()
    ops = ("second_moment", "conv2d_second_moment", "spd_inverse")
    serving = [f"{s.op} {s.backend}" for s in report.ops if s.op in ops and s.device == device.type]
    return ", ".join([report.versions["lnb-kernels"], *sorted(serving)])
