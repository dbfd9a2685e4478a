"""How fp32 operands meet the tensor cores: ``tf32``, ``tf32x3`` or ``ieee``."""

from __future__ import annotations

import torch

from lnb_kernels._triton.arch import Arch

PRECISIONS = ("auto", "tf32", "tf32x3", "ieee")
_chosen = "auto"


def set_input_precision(name: str) -> None:
    """Choose how products of fp32 operands run in the Triton kernels; 16-bit operands are exact products in any case.

    Args:
        name: ``"tf32"`` (one pass, 11 significant bits), ``"tf32x3"`` (three passes, about fp32), ``"ieee"`` (fp32, no
            tensor cores), or ``"auto"``: ``"tf32"`` where ``torch.set_float32_matmul_precision`` or
            ``torch.backends.cuda.matmul.fp32_precision`` allows it, else ``"tf32x3"``; on GPUs without tf32, ``"ieee"``.

    Raises:
        ValueError: ``name`` is none of these.
    """
    global _chosen
    if name not in PRECISIONS:
        raise ValueError(f"set_input_precision: name={name!r} is not allowed; choose one of {', '.join(PRECISIONS)}")
    _chosen = name


def input_precision(arch: Arch) -> str:
    """The precision of fp32 operands on ``arch`` now."""
    if arch.tf32_rate == 0.0:
        return "ieee"  # Triton has no tf32x3 for AMD, and fp32 matrix cores are exact there
    if _chosen != "auto":
        return _chosen
    return "tf32" if _user_allows_tf32() else "tf32x3"


def _user_allows_tf32() -> bool:
    """What PyTorch's own products of fp32 operands do on NVIDIA's GPUs.

    PyTorch has an old setting for all backends and a new one for each. Both change what the new one reads; to read the old one
    is an error in a process that has set the new one.
    """
    setting: str = torch.backends.cuda.matmul.fp32_precision
    return setting == "tf32"
