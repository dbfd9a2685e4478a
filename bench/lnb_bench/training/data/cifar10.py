"""CIFAR-10 from two npz files of JPEG streams, or from the pickled batches of the authors."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lnb.machine import cache_folder
from lnb_bench.training.data.archives import check_form, read_npz, require_regular
from lnb_bench.training.data.fetch import fetch_with_torchvision
from lnb_bench.training.data.files import Array, check_labels, data_folder
from lnb_bench.training.data.splits import ImageSplit
from lnb_bench.training.errors import DataError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH_FOLDER = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
REMEDY = (
    f"Put cifar10_train.npz and cifar10_test.npz, or the folder {BATCH_FOLDER}, there, or `pip install torchvision` to "
    f"have the batches fetched"
)


def load_cifar10(data: Path | None = None, *, invert: bool = False) -> tuple[ImageSplit, ImageSplit]:
    """Training (50,000) and test (10,000) images ``[N, 3, 32, 32]``, standardised per channel.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = data_folder(data)
    named = folder is not None
    if folder is None:
        folder = cache_folder()
    if _has_none(folder):
        if named:
            raise DataError(f"{folder / 'cifar10_train.npz'}: no such file. {REMEDY} (without --data and LNB_DATA)")
        fetch_with_torchvision("CIFAR10", "cifar10_train.npz", REMEDY)
    splits = []
    for split in ("train", "test"):
        archive = folder / f"cifar10_{split}.npz"
        images, labels = _read_jpeg(archive) if archive.is_file() else _read_batches(folder / BATCH_FOLDER, split)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        splits.append(ImageSplit(pixels, torch.from_numpy(labels), mean=MEAN, std=STD, invert=invert))
    return splits[0], splits[1]


def _has_none(folder: Path) -> bool:
    return not (folder / "cifar10_train.npz").is_file() and not (folder / BATCH_FOLDER).is_dir()


def _read_jpeg(path: Path) -> tuple[Array, Array]:
    try:
        import PIL  # noqa: F401 - asked here, before the long loop, whether it is there
    except ImportError as error:
        raise DataError(f"{path}: holds JPEG images; `pip install pillow` to read them") from error
    forms = {"jpeg": ("uint8", (None,)), "offsets": ("integers", (None,)), "labels": ("uint8", (None,))}
    jpeg, offsets, labels = read_npz(path, forms)
    check_labels(path, labels, 10)
    cuts = len(offsets) == len(labels) + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == len(jpeg)
    if not cuts or (offsets[1:] < offsets[:-1]).any():
        raise DataError(f"{path}: its offsets do not cut the JPEG data into one stream per label; replace the file")
    bounds = offsets.astype(np.int64)
    stream = memoryview(jpeg.tobytes())
    images = np.empty((len(labels), 3, 32, 32), np.uint8)
    for i in range(len(labels)):
        images[i] = _decode(path, i, bytes(stream[bounds[i] : bounds[i + 1]]))
    return images, labels


def _decode(path: Path, number: int, jpeg: bytes) -> Array:
    """Image ``[3, 32, 32]`` number ``number`` of ``path``."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            if image.size != (32, 32):  # before it is unpacked
                raise DataError(
                    f"{path}: image {number} has {image.size[0]}x{image.size[1]} pixels, must have 32x32; replace the file"
                )
            pixels = np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # a damaged picture can raise anything
        raise DataError(f"{path}: image {number} is damaged ({error}); copy or download the file again") from error
    channels_first: Array = pixels.transpose(2, 0, 1)
    return channels_first


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain values, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.zeros(0).__reduce__()[0]  # NumPy moved the function between its versions
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode  # how Python 3 writes bytes in the pickle protocol of Python 2
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a CIFAR-10 batch")


def _read_batches(folder: Path, split: str) -> tuple[Array, Array]:
    images, labels = [], []
    for name in BATCHES[split]:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: no such file. {REMEDY}")
        try:
            require_regular(path)
            with path.open("rb") as file:
                entry = _ArraysOnly(file, encoding="bytes").load()
            rows, numbers = np.asarray(entry[b"data"]), np.asarray(entry[b"labels"], np.uint8)
        except Exception as error:  # a damaged pickle can raise anything
            raise DataError(f"{path}: damaged or not a CIFAR-10 batch ({error}); copy or download it again") from error
        check_form(path, "labels", numbers.dtype, numbers.shape, ("uint8", (None,)))
        check_form(path, "data", rows.dtype, rows.shape, ("uint8", (len(numbers), 3 * 32 * 32)))
        check_labels(path, numbers, 10)
        images.append(rows.reshape(-1, 3, 32, 32))
        labels.append(numbers)
    return np.concatenate(images), np.concatenate(labels)
