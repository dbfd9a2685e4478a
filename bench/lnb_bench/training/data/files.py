"""Where data files are looked for, and how they are opened: every failure names the file and the remedy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lnb_bench.training.errors import DataError

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


def check_labels(path: Path, labels: Array, classes: int, ignore: int | None = None) -> None:
    """Require labels below ``classes`` (or equal to ``ignore``).

    Raises:
        DataError: it is not so.
    """
    counted = labels if ignore is None else labels[labels != ignore]
    if counted.size and int(counted.max()) >= classes:
        raise DataError(f"{path}: label {int(counted.max())} is not below {classes}; the file is damaged: replace it")
