"""safetensors files, written one tensor after the other and read the same way.

The library writes what is in memory all at once. But all sizes are known beforehand, so the header can come first and the
tensors follow as they are made. The format is: the header's length, 8 bytes, little-endian; the header, JSON, an entry for each
tensor with dtype, shape and the range of its bytes; then the bytes, little-endian, without gaps
(https://github.com/huggingface/safetensors). Reading is the library's own.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.float64: "F64"}
_ALIGNMENT = 8


def write_tensors(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file; one tensor at a time is in memory.

    It is written beside ``path`` and moved there when it is complete and on the disk.

    Args:
        path: the file, replaced if it exists.
        shapes: dtype and shape of every tensor.
        tensors: each of them once, with its name, in any order.
        metadata: of the file.
    """
    target = Path(path)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(
        shapes.items(), key=lambda item: -item[1][0].itemsize
    ):  # each on a multiple of its size
        begins[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begins[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        with beside.open("xb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            data = file.tell()
            for name, tensor in tensors:
                assert shapes[name] == (tensor.dtype, tuple(tensor.shape)), (name, tensor.dtype, tensor.shape)
                array = tensor.detach().cpu().contiguous().numpy()
                file.seek(data + begins.pop(name))
                file.write((array if sys.byteorder == "little" else array.byteswap()).data)
                del tensor, array  # before the next one is made
            assert not begins, f"tensors that were not written: {sorted(begins)}"
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class TensorFile:
    """A safetensors file that is opened, mapped and closed for every tensor that is read.

    Raises:
        ImportError: the library is not installed.
        OSError: the file cannot be opened, or is none.
        ValueError: it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise OSError(f"{self.path} is not a regular file")  # a pipe would be waited for
        with self._open() as file:
            self.metadata: dict[str, str] = dict(file.metadata() or {})
            self.names = frozenset(file.keys())

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some tensors, as private mappings of the file: pages are read as they are used, and writing does not reach the file.

        Raises:
            ValueError: one is not there, or the file was damaged since it was opened.
        """
        from safetensors import SafetensorError

        with self._open() as file:
            try:
                return {name: file.get_tensor(name) for name in names}
            except SafetensorError as error:
                raise ValueError(f"{self.path}: a tensor cannot be read: {error}; {REMEDY}") from error

    def _open(self) -> Any:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError(
                "moments are read from files by the package safetensors: pip install 'lnb-kernels[moments]'"
            ) from error
        try:
            return safe_open(str(self.path), framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{self.path} is no whole safetensors file: {error}; {REMEDY}") from error


REMEDY = "the file is damaged or not one of moments: export or copy it anew"
