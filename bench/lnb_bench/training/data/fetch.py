"""Data sets that torchvision can download, for machines that have it and no copy of the data."""

from __future__ import annotations

import importlib
from typing import Any

from lnb.machine import cache_folder
from lnb_bench.training.errors import DataError


def fetch_with_torchvision(data_set: str, wanted: str, remedy: str) -> None:
    """Download torchvision's ``data_set`` into :func:`cache_folder`.

    Raises:
        DataError: torchvision is not installed, or the download failed; names the file ``wanted`` and the ``remedy``.
    """
    try:
        datasets: Any = importlib.import_module("torchvision.datasets")
    except ImportError as error:
        raise DataError(f"{wanted}: no data folder is known; pass --data DIR or set LNB_DATA. {remedy}") from error
    try:
        getattr(datasets, data_set)(str(cache_folder()), download=True)
    except Exception as error:  # whatever the network, the server or the disk may raise
        raise DataError(f"{wanted}: torchvision could not fetch {data_set} ({error}). {remedy}") from error
