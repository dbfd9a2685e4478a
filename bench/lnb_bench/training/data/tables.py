"""Tables of numbers that come inside Python packages: 442 patients with diabetes, and 53,940 diamonds."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path

import numpy as np
import torch

from lnb.reading import read_text, reason
from lnb_bench.training.data.files import Array, data_folder, find
from lnb_bench.training.data.splits import VectorSplit
from lnb_bench.training.errors import DataError

DIAMONDS = "diamonds.csv"
NUMBERS = ("carat", "depth", "table", "x", "y", "z")
GRADES = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("D", "E", "F", "G", "H", "I", "J"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
REMEDY = f"Put {DIAMONDS} (the table of R's ggplot2) there, or `pip install plotnine`, which has it"
TEST_SHARE = 5  # one row of so many


def load_diabetes() -> tuple[VectorSplit, VectorSplit]:
    """354 training and 88 test patients: ten measurements ``[N, 10]``, the progress of the disease ``[N, 1]``.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_diabetes as table
    except ModuleNotFoundError as error:
        raise DataError("diabetes: the table comes with scikit-learn; `pip install scikit-learn`") from error
    inputs, target = table(return_X_y=True, scaled=False)
    return standardised(np.asarray(inputs, np.float64), np.asarray(target, np.float64))


def load_diamonds(data: Path | None = None) -> tuple[VectorSplit, VectorSplit]:
    """43,152 training and 10,788 test diamonds: 6 measurements and 20 grades ``[N, 26]``, the log of the price ``[N, 1]``.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = _locate(data_folder(data))
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
        numbers = np.array([[float(row[name]) for name in NUMBERS] for row in rows])
        grades = [
            np.eye(len(levels))[[levels.index(row[name]) for row in rows]] for name, levels in GRADES.items()
        ]  # one-hot
        prices = np.log([float(row["price"]) for row in rows])
        inputs = np.concatenate([numbers, *grades], axis=1)
        if len(rows) < 2 * TEST_SHARE or not (np.isfinite(inputs).all() and np.isfinite(prices).all()):
            raise ValueError(f"{len(rows)} rows, or figures that are not finite")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: damaged, or not the table of diamonds ({error}); copy or install it again") from error
    return standardised(inputs, prices)


def standardised(inputs: Array, target: Array) -> tuple[VectorSplit, VectorSplit]:
    """Training and test rows, shuffled once and for all; every column has mean 0 and variance 1 over the training rows."""
    order = np.random.default_rng(0).permutation(len(inputs))
    cut = len(inputs) // TEST_SHARE
    test, train = order[:cut], order[cut:]
    columns = np.concatenate([inputs, target[:, None]], axis=1)
    mean, spread = columns[train].mean(0), columns[train].std(0)
    scaled = torch.from_numpy((columns - mean) / np.where(spread > 0, spread, 1.0)).float()
    splits = [VectorSplit(scaled[rows, :-1].contiguous(), scaled[rows, -1:].contiguous()) for rows in (train, test)]
    return splits[0], splits[1]


def _locate(folder: Path | None) -> Path:
    """The file in the data folder, else inside the installed package, which is not imported for it."""
    path = find(folder, [DIAMONDS])
    if path is not None:
        return path
    package = importlib.util.find_spec("plotnine")
    for place in () if package is None else package.submodule_search_locations or ():
        shipped = Path(place) / "data" / DIAMONDS
        if shipped.is_file():
            return shipped
    raise DataError(f"{(folder or Path()) / DIAMONDS}: no such file. {REMEDY}")
