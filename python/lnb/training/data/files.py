"""Where data files are looked for, and how they are opened: every failure names the file and the remedy."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lnb.training.errors import DataError

Array = npt.NDArray[Any]


def data_folder(data: Path | None) -> Path | None:
    """The folder named by the caller, else by ``$LNB_DATA``, else None.

    Raises:
        DataError: the folder does not exist.
    """
    if data is None:
        named = os.environ.get("LNB_DATA")
        if not named:
            return None
        folder, origin = Path(named), "LNB_DATA"
    else:
        folder, origin = data, "--data"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {origin} must name the folder that holds the data sets")
    return folder


def find(folder: Path | None, candidates: Iterable[str]) -> Path | None:
    """The first of ``candidates`` (paths inside ``folder``) that is a file."""
    if folder is None:
        return None
    return next((folder / name for name in candidates if (folder / name).is_file()), None)


def require(folder: Path | None, name: str, remedy: str) -> Path:
    """The file ``name`` of ``folder``.

    Raises:
        DataError: no folder is known, or the file is not in it.
    """
    if folder is None:
        raise DataError(f"{name}: no data folder is known; pass --data DIR or set LNB_DATA. {remedy}")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path}: no such file. {remedy}")
    return path


def read_npz(path: Path, keys: tuple[str, ...]) -> list[Array]:
    """The arrays ``keys`` of an npz file; pickled objects are refused.

    Raises:
        DataError: the file cannot be read, is damaged, or lacks a key.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                raise DataError(
                    f"{path}: has no array {missing[0]!r}, only {', '.join(sorted(archive)) or 'nothing'}; "
                    f"it is another file of the same name: replace it"
                )
            return [np.asarray(archive[key]) for key in keys]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged npz file ({error}); copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def check_array(path: Path, name: str, array: Array, shape: tuple[int | None, ...]) -> None:
    """Require uint8 and ``shape`` (None: any length) of an array that came from ``path``.

    Raises:
        DataError: it is not so.
    """
    fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if array.dtype != np.uint8 or not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise DataError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}, must be uint8 [{wanted}]; replace the file"
        )


def check_labels(path: Path, labels: Array, classes: int, ignore: int | None = None) -> None:
    """Require labels below ``classes`` (or equal to ``ignore``).

    Raises:
        DataError: it is not so.
    """
    counted = labels if ignore is None else labels[labels != ignore]
    if counted.size and int(counted.max()) >= classes:
        raise DataError(f"{path}: label {int(counted.max())} is not below {classes}; the file is damaged: replace it")
