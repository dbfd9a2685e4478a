"""A simulated timeline: what a stream of launches takes, by stated rates. Arithmetic, not a measurement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from meter.counting import Launch, Record


@dataclass(frozen=True)
class Rates:
    """Of a device and its host.

    Attributes:
        memory: bytes per second.
        products: FLOP/s of matrix products by the dtype of their operands; float32 ones use tf32, and None are those of no
            tensor cores.
        host: seconds until the host has queued a launch.
        least: seconds that a kernel takes at least.
    """

    memory: float
    products: dict[torch.dtype | None, float]
    host: float
    least: float


# Nine tenths of the peak bandwidth, two thirds of the peak of dense products, as good kernels reach, and half of the peak
# of plain float32.
H100 = Rates(
    0.9 * 3.35e12,
    {
        torch.bfloat16: 0.66 * 989e12,
        torch.float16: 0.66 * 989e12,
        torch.float32: 0.66 * 495e12,
        torch.float64: 0.66 * 67e12,
    },
    4e-6,
    1.5e-6,
)


def seconds(records: Iterable[Record], rates: Rates = H100) -> float:
    """From the first launch to the end of the last: the host runs ahead of the device, or the device waits for it."""
    host = device = 0.0
    for record in records:
        for launch in record.launched:
            host += launch.count * rates.host
            device = max(device, host) + _duration(launch, rates)
    return max(host, device)


def _duration(launch: Launch, rates: Rates) -> float:
    busy = max(
        launch.bytes / rates.memory, launch.flops / rates.products.get(launch.dtype, rates.products[torch.float32])
    )
    return max(busy, launch.count * rates.least)
