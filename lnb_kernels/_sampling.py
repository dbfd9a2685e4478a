"""Second moments from a part of the samples, and in lower precision: how a layer's op reads its input for the probe."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lnb_kernels import _checks

MOMENT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Sample(NamedTuple):
    """Every ``every``-th entry of the leading dimension, from a start that the caller draws.

    Of ``N`` entries the ``n = ceil(N / every)`` at ``(floor(start N) + every k) mod N`` are read, and sums over them are
    multiplied by ``N / n``. With ``start`` uniform in [0, 1) every entry is read with the same probability ``n / N``, so the
    estimate of every sum over entries is unbiased, for every ``N`` and ``every``. Shapes do not depend on ``start``, and the
    host does not read it.

    Attributes:
        start: tensor ``[]`` in [0, 1), on the input's device.
        every: at least 1.
    """

    start: torch.Tensor
    every: int

    def count(self, size: int) -> int:
        """How many of ``size`` entries are read."""
        return -(-size // self.every)

    def indices(self, size: int) -> torch.Tensor:
        """Which entries of ``size`` are read, ``[count]``."""
        first = (self.start.double() * size).long() if self.start.device.type != "mps" else (self.start * size).long()
        steps = torch.arange(self.count(size), device=self.start.device) * self.every
        return (steps + first) % max(size, 1)

    def scale(self, size: int) -> float:
        """What sums over the entries that are read are multiplied by."""
        return size / max(self.count(size), 1)


def check(op: str, sample: tuple[torch.Tensor, int] | None, x: torch.Tensor) -> Sample | None:
    """``sample`` as a :class:`Sample`.

    Raises:
        TypeError: it is no pair of a tensor and an int.
        ValueError: the tensor is no scalar on the device of ``x``, or the int is below 1.
    """
    if sample is None:
        return None
    if (
        not isinstance(sample, tuple)
        or len(sample) != 2
        or isinstance(sample[1], bool)
        or not isinstance(sample[1], int)
    ):
        raise TypeError(f"{op}: sample must be None or a pair (start tensor [], every), got {sample!r}")
    start, every = sample
    _checks.floating_tensor(op, "sample[0]", start)
    _checks.shape_is(op, "sample[0]", start, (), "one start in [0, 1)")
    _checks.same_device(op, "sample[0]", start, "x", x)
    if every < 1:
        raise ValueError(
            f"{op}: sample[1]={every} is not allowed; it must be at least 1: one of so many samples is read"
        )
    return Sample(start, every)


def check_dtype(op: str, dtype: torch.dtype | None) -> None:
    """Raise ``ValueError`` unless ``dtype`` is None or one that products can be taken in."""
    if dtype is not None and dtype not in MOMENT_DTYPES:
        raise ValueError(f"{op}: moment_dtype={dtype!r} must be None or one of {', '.join(map(str, MOMENT_DTYPES))}")


def read(x: torch.Tensor, start: torch.Tensor | None, every: int) -> tuple[torch.Tensor, float]:
    """The entries of the leading dimension of ``x`` that the second moment is taken of, and the factor of its sums."""
    scale = 1.0
    if start is not None and every > 1:
        sample = Sample(start, every)
        scale = sample.scale(x.shape[0])
        x = x.index_select(0, sample.indices(x.shape[0]))
    return x, scale
