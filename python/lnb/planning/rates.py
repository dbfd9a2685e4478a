"""How fast a device does what a step consists of: measured once, remembered on disk, or assumed."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

KINDS = ("matmul", "gram", "batched", "factor", "conv", "conv_gram")
"""What has a rate of its own, in FLOP/s as a function of size:

* ``matmul``: a product ``[m, k] [k, n]``; its size is ``(m k n)^(1/3)``.
* ``gram``: the second moment of samples, counted as ``N d^2``; its size is ``d``.
* ``batched``: many small products, counted as ``2 n^3`` each; its size is ``n``.
* ``factor``: Cholesky factor and inverse of ``[n, n]``, counted as ``n^3``.
* ``conv``: forward, or either half of the backward, of a 3x3 convolution, counted as ``2 N d m``; its size is ``sqrt(d m)``.
* ``conv_gram``: the second moment of its patches, counted as the ``2 C^2`` per pixel of each shift; its size is ``C``.
"""

Curve = tuple[tuple[int, float], ...]

INTERPRETER = 4e-6
"""Seconds of Python around a call of a small operation, whatever the device; measured on layers of almost no arithmetic."""


@dataclass(frozen=True)
class Rates:
    """The speed of one device. Plans are functions of it: equal rates give equal plans.

    Attributes:
        overhead: seconds that a call of a small operation takes, without the Python around it.
        bandwidth: bytes per second that an elementwise operation reads and writes.
        curves: FLOP/s at a few sizes, ascending, by ``"kind/dtype"`` for the kinds of :data:`KINDS`.
        source: where they are from, in words.
    """

    overhead: float
    bandwidth: float
    curves: Mapping[str, Curve]
    source: str = field(default="given", compare=False)

    def __post_init__(self) -> None:
        for name in ("overhead", "bandwidth"):
            _require_positive(name, getattr(self, name))
        missing = [kind for kind in KINDS if not self.curves.get(f"{kind}/float32")]
        if missing:
            raise ValueError(f"rates: curves must have a float32 curve of every kind; {', '.join(missing)} is missing")
        for name, curve in self.curves.items():
            sizes = [size for size, _ in curve]
            if sizes != sorted(set(sizes)) or not curve:
                raise ValueError(f"rates: the sizes of curve {name!r}, {sizes}, must be ascending")
            for size, rate in curve:
                _require_positive(f"size of curve {name!r}", size)
                _require_positive(f"rate of curve {name!r}", rate)

    def seconds(self, kind: str, dtype: torch.dtype, size: float, flops: float) -> float:
        """Time of ``flops`` operations of one kind: interpolated between sizes, both on a logarithmic scale."""
        name = str(dtype).removeprefix("torch.")
        curve = self.curves.get(f"{kind}/{name}")
        slower = 1.0
        if curve is None:
            curve = self.curves[f"{kind}/float32"]
            slower = 2.0 if dtype == torch.float64 else 1.0
        return slower * flops / _interpolate(curve, size)

    def traffic(self, nbytes: float) -> float:
        """Time to read or write this number of bytes."""
        return nbytes / self.bandwidth

    def calls(self, count: float) -> float:
        """Time of this number of calls themselves, without the operations that they start."""
        return count * (self.overhead + INTERPRETER)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        curves = {name: [list(point) for point in curve] for name, curve in self.curves.items()}
        return {"overhead": self.overhead, "bandwidth": self.bandwidth, "curves": curves}

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Rates:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: ``values`` is something else.
        """
        try:
            curves = {
                str(name): tuple((int(size), float(rate)) for size, rate in curve)
                for name, curve in values["curves"].items()
            }
            return cls(float(values["overhead"]), float(values["bandwidth"]), curves, source)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"rates: {error!r} while reading them") from error


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"rates: {name}={value!r} must be in (0, inf)")


def _interpolate(curve: Curve, size: float) -> float:
    sizes = [s for s, _ in curve]
    right = bisect.bisect_left(sizes, size)
    if right == 0:
        return curve[0][1]
    if right == len(curve):
        return curve[-1][1]
    (s0, r0), (s1, r1) = curve[right - 1], curve[right]
    share = math.log(size / s0) / math.log(s1 / s0)
    return math.exp(math.log(r0) + share * math.log(r1 / r0))


def default_rates(device: torch.device) -> Rates:
    """Rates of a usual device of its type: what is assumed where none can be measured."""
    if device.type == "cpu":
        matmul = ((64, 2e10), (256, 6e10), (768, 8e10))
        slow = ((64, 5e9), (256, 2e10), (768, 4e10))
        overhead, bandwidth = 3e-6, 1e10
    else:
        matmul = ((64, 2e11), (256, 4e12), (1024, 3e13))
        slow = ((64, 5e9), (256, 1e11), (1024, 1e12))
        overhead, bandwidth = 6e-6, 1e12
    curves: dict[str, Curve] = {f"{kind}/float32": matmul for kind in KINDS}
    curves["factor/float32"] = curves["conv_gram/float32"] = slow
    return Rates(overhead, bandwidth, curves, f"assumed for a {device.type} device")
