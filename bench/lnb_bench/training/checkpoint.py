"""Checkpoint files: a digest, then what ``torch.save`` writes; read back without running any code in them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from lnb.reading import read_bytes, reason
from lnb_bench.training.errors import CheckpointError
from lnb_bench.training.files import write_atomically

MAGIC = b"LNBCKPT1"
DIGEST_BYTES = hashlib.sha256().digest_size


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, and lists and dicts of these) atomically to ``path``.

    torch's reader does not check its archive's sums, hence the digest.

    Raises:
        CheckpointError: it cannot be written; a checkpoint that was there before is still there.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    try:
        write_atomically(path, MAGIC + hashlib.sha256(payload).digest() + payload)
    except OSError as error:
        raise CheckpointError(
            f"{path}: the checkpoint cannot be written ({error.strerror or error}); the one before it, if any, is "
            f"intact. Make room or choose another --out, then go on with --resume"
        ) from error


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: the file cannot be read, is not a checkpoint, or is damaged.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)})") from error
    if not content.startswith(MAGIC):
        raise CheckpointError(f"{path}: not a checkpoint of `lnb-bench train` (or of another version of it)")
    header = len(MAGIC) + DIGEST_BYTES
    if hashlib.sha256(content[header:]).digest() != content[len(MAGIC) : header]:
        raise CheckpointError(
            f"{path}: damaged (its digest does not match); restore it from a copy or start the run anew"
        )
    try:
        state = torch.load(io.BytesIO(content[header:]), map_location=device, weights_only=True)
    except Exception as error:  # a pickle of other content can raise anything
        raise CheckpointError(f"{path}: cannot be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: holds {type(state).__name__}, not the state of a run; restore it from a copy or start the run anew"
        )
    return state
