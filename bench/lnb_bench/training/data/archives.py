"""Unpacking compressed data with no more memory than the file can fill: sizes are checked before anything is unpacked."""

from __future__ import annotations

import gzip
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lnb_bench.training.data.files import Array
from lnb_bench.training.errors import DataError

# A deflated block codes at most 258 bytes in 2 bits, so a stream grows by less than this.
MOST_DEFLATED = 1032
_SLACK = 1 << 16  # headers of the archive and of the arrays
_CHUNK = 1 << 20
_LONGEST_HEADER = 10_000  # of an array in an npz file: what NumPy itself trusts

KINDS = {"uint8": "uint8", "integers": "whole numbers"}
Form = tuple[str, tuple[int | None, ...]]
"""One of :data:`KINDS`, and a shape (None: any length)."""


def read_npz(path: Path, forms: Mapping[str, Form]) -> list[Array]:
    """Arrays of an npz file, by name; pickled objects are refused.

    All headers are checked before the first array is unpacked.

    Raises:
        DataError: the file cannot be read, is damaged, lacks an array, or has one of another form.
    """
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            for name, form in forms.items():
                _check_member(path, archive, name, form)
            return [_member(archive, name) for name in forms]
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: there is not enough memory for its arrays") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # a damaged archive can raise anything: BadZipFile, zlib.error, struct.error, ...
        raise DataError(f"{path}: damaged npz file ({error}); copy or download it again") from error


def _check_member(path: Path, archive: zipfile.ZipFile, name: str, form: Form) -> None:
    """Require that an array has a form, and that what it takes in memory is what the archive can hold."""
    names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
    if name not in names:
        raise DataError(
            f"{path}: has no array {name!r}, only {', '.join(sorted(names)) or 'nothing'}; "
            f"it is another file of the same name: replace it"
        )
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        shape, _, dtype = _header(file)
        start = file.tell()
    check_form(path, name, dtype, shape, form)
    size = math.prod(shape) * dtype.itemsize
    if member.file_size != start + size:
        raise ValueError(f"array {name!r} is to have {size} bytes, the archive has {member.file_size - start}")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"array {name!r} is compressed in another way than NumPy does it")
    require_possible(path, start + size, "its headers")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order (whether it is Fortran's) and dtype of an array in the npy format."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array is in version {version} of the npy format, must be in (1, 0) or (2, 0)")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file, max_header_size=_LONGEST_HEADER)


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(f"{name}.npy") as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"array {name!r} is longer than its header says")
        return array


def check_form(path: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], form: Form) -> None:
    """Require a form of an array that came from ``path``.

    Raises:
        DataError: it has another one.
    """
    kind, wanted = form
    fits = len(shape) == len(wanted) and all(n is None or n == m for n, m in zip(wanted, shape, strict=True))
    right = dtype.kind in "ui" if kind == "integers" else dtype == np.dtype(kind)
    if not (fits and right):
        sizes = ", ".join("any" if n is None else str(n) for n in wanted)
        raise DataError(f"{path}: {name} is {dtype} {list(shape)}, must be {KINDS[kind]} [{sizes}]; replace the file")


class Unpacking:
    """A file, gzip-compressed if its name ends in ``.gz``: first its header is read, then, once its size is known, the rest.

    Args:
        path: the file.
        header_bytes: length of the header.

    Attributes:
        header: the first bytes; fewer if the file is shorter.

    Raises:
        DataError: the file cannot be read or is damaged.
    """

    def __init__(self, path: Path, header_bytes: int) -> None:
        self.path = path
        self._taken = header_bytes
        self.header = self._read(0, header_bytes)

    def rest(self, size: int) -> bytearray:
        """What follows the header: at most ``size`` bytes and one more, by which a longer file is known.

        Raises:
            DataError: the file cannot be read, is damaged, or cannot hold so many bytes.
        """
        require_possible(self.path, self._taken + size, "its header")
        return self._read(self._taken, size + 1)

    def _read(self, start: int, size: int) -> bytearray:
        try:
            require_regular(self.path)
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                file.seek(start)
                content = bytearray()
                while len(content) < size and (chunk := file.read(min(size - len(content), _CHUNK))):
                    content += chunk
                return content
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self.path}: damaged gzip file ({error}); copy or download it again") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error})") from error
        except MemoryError as error:
            raise DataError(f"{self.path}: there is not enough memory for its {size} bytes") from error


def require_possible(path: Path, size: int, who: str) -> None:
    """Require that ``path`` can hold ``size`` bytes, compressed or not.

    Raises:
        DataError: no compression makes so much of so few bytes, so what it says of itself is wrong.
    """
    packed = path.stat().st_size
    if size > MOST_DEFLATED * packed + _SLACK:
        raise DataError(
            f"{path}: {who} asks for {size} bytes, which its {packed} bytes cannot hold; copy or download it again"
        )


def require_regular(path: Path) -> None:
    """Require a regular file: opening a named pipe would wait for ever.

    Raises:
        OSError: it does not exist or is something else.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path} is not a regular file")
