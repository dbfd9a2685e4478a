"""Which kernels refresh: the CUDA module's, and Triton's for what it does not take, where it is not there, and on AMD's GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _backend, _cuda
from lnb_kernels._backend import KernelUnavailable
from lnb_kernels.refresh.layers import InputMetric

LARGEST_TRITON = 576
"""Side of blocks up to which Triton's kernels serve: their operands are in caches, not on chip."""
_OP = "refresh_metrics"


def _elsewhere(*_: Any) -> None:
    raise NotImplementedError(f"{_OP} has kernels for GPUs only; refreshes in plain PyTorch are those of lnb")


_backend.register(
    _OP,
    _elsewhere,
    triton="lnb_kernels.refresh.triton_kernel:refresh_metrics",
    native_cuda="lnb_kernels.refresh.cuda_kernel:refresh_metrics",
)


@dataclass(frozen=True)
class Refresher:
    """Kernels that refresh layers on one device.

    Attributes:
        backend: whose they are.
        largest: side of the blocks that they take.
    """

    backend: str
    largest: int

    def refresh(
        self, layers: Sequence[InputMetric], ok: Tensor | None, noise: float, coefficients: Sequence[float], steps: int
    ) -> bool:
        """Average the second moments, and write ``C^-1``, the means and ``P^(-1/2)``, of layers that had samples.

        A layer changes nothing where its ``gathered`` counts no sample, is not ``squarable``, or ``ok`` does not hold. A block
        that has no inverse in float32 gets a ridge that is larger by its mean diagonal, and if that does not help, the inverse
        of its diagonal; a moment without a root gets a multiple of the identity.

        Args:
            layers: all on one device, with blocks of at most ``largest`` entries.
            ok: ``[]``, bool, whether anything may change; None for yes.
            noise: the variance, in units of the mean square, below which inputs do not vary: their ridge is then relative
                to the mean square.
            coefficients: ``(a, b, c)`` of the Newton-Schulz steps for the root.
            steps: their number, at least 1.

        Returns:
            Whether it was done; False, and nothing was written, where the kernels turn out not to compile.

        Raises:
            ValueError: sizes do not fit; nothing was written.
            RuntimeError: CUDA refused a launch; the message names it.
        """
        if not layers:
            return True
        route = _backend.routes()[_OP]
        try:
            _backend.load(route, self.backend)(layers, ok, noise, coefficients, steps)
        except KernelUnavailable as error:
            if _backend.get_backend() != "auto":
                raise
            _backend.give_up(route, self.backend, error, lambda: "reference")
            return False
        return True


def refreshers(tensor: Tensor) -> list[Refresher]:
    """The kernels that run on the device of ``tensor`` under the backend that is set, in the order in which they are asked;
    none while a step is traced."""
    if torch.compiler.is_compiling():
        return []
    device = tensor.device
    found = []
    if _cuda.serves(device, _OP):
        chosen = _backend.candidate(_backend.routes()[_OP], device, torch.float32, _backend.get_backend())
        found.append(Refresher(chosen, _cuda.largest_side(tensor)))
        if _backend.serves_beside(_OP, device):
            found.append(Refresher("triton", LARGEST_TRITON))
    elif _cuda.falls_back_to(device, _OP, "triton"):
        found.append(Refresher("triton", LARGEST_TRITON))
    return found
