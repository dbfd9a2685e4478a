"""MNIST from IDX files, plain or gzip-compressed."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch

from lnb.machine import cache_folder
from lnb_bench.training.data.archives import Unpacking
from lnb_bench.training.data.fetch import fetch_with_torchvision
from lnb_bench.training.data.files import Array, check_labels, data_folder, find
from lnb_bench.training.data.splits import ImageSplit, random_affine
from lnb_bench.training.errors import DataError

FOLDERS = ("mnist", "MNIST/raw", ".")
REMEDY = "Put the four MNIST IDX files (plain or .gz) there, or `pip install torchvision` to have them fetched"


def load_mnist(
    data: Path | None = None, *, invert: bool = False, rescale: int | None = None
) -> tuple[ImageSplit, ImageSplit]:
    """Training (60,000) and test (10,000) images ``[N, 1, 28, 28]``, pixels in [0, 1] without standardisation.

    With ``rescale``, the seed of it, every pixel gets its own scale and shift, the same in both splits.

    Raises:
        DataError: a file is missing or damaged.
    """
    affine = None if rescale is None else random_affine((1, 28, 28), rescale)
    splits = []
    for prefix in ("train", "t10k"):
        image_file = _locate(data, f"{prefix}-images-idx3-ubyte")
        label_file = _locate(data, f"{prefix}-labels-idx1-ubyte")
        images, labels = read_idx(image_file, dimensions=3, item=(28, 28)), read_idx(label_file, dimensions=1)
        if len(images) != len(labels):
            raise DataError(
                f"{label_file}: {len(labels)} labels for the {len(images)} images of {image_file}; replace both"
            )
        check_labels(label_file, labels, 10)
        pixels = torch.from_numpy(images[:, None])
        splits.append(ImageSplit(pixels, torch.from_numpy(labels), invert=invert, affine=affine))
    return splits[0], splits[1]


def read_idx(path: Path, *, dimensions: int, item: tuple[int, ...] | None = None) -> Array:
    """An IDX file of unsigned bytes (magic 0, 0, 8, ``dimensions``; big-endian sizes; data) as a writable array.

    Args:
        path: the file, unpacked if its name ends in ``.gz``, and no further than its header says.
        dimensions: of the array.
        item: the shape of one entry of the first dimension; None for any.

    Raises:
        DataError: the file cannot be read or is not such a file; the message says which part is wrong.
    """
    header = 4 + 4 * dimensions
    file = Unpacking(path, header)
    magic = bytes((0, 0, 8, dimensions))
    if file.header[:4] != magic:
        raise DataError(
            f"{path}: starts with {file.header[:4].hex(' ') or 'nothing'}, an IDX file of {dimensions}-d bytes with "
            f"{magic.hex(' ')}; it is another file: replace it"
        )
    if len(file.header) < header:
        raise DataError(f"{path}: truncated inside its header; copy or download it again")
    shape = struct.unpack(f">{dimensions}I", file.header[4:])
    if item is not None and shape[1:] != item:
        has, must = ("x".join(map(str, sizes)) for sizes in (shape[1:], item))
        raise DataError(f"{path}: images of {has} pixels, must be {must}; it is another file: replace it")
    size = math.prod(shape)  # of Python's integers, which do not overflow
    data = file.rest(size)
    if len(data) != size:
        longer = len(data) > size
        has = str(path.stat().st_size if longer else header + len(data))
        if longer and path.suffix == ".gz":
            has = f"more than {header + size}"
        raise DataError(
            f"{path}: {has} bytes, its header {list(shape)} asks for {header + size}; copy or download it again"
        )
    values: Array = np.frombuffer(data, np.uint8).reshape(shape)
    return values


def _locate(data: Path | None, name: str) -> Path:
    candidates = [f"{folder}/{name}{suffix}" for folder in FOLDERS for suffix in (".gz", "")]
    folder = data_folder(data)
    path = find(folder, candidates)
    if path is not None:
        return path
    if folder is not None:
        raise DataError(f"{folder / FOLDERS[0] / name}.gz: no such file. {REMEDY} (without --data and LNB_DATA)")
    path = find(cache_folder(), candidates)
    if path is None:
        fetch_with_torchvision("MNIST", name, REMEDY)
        path = find(cache_folder(), candidates)
    if path is None:
        raise DataError(f"{cache_folder() / FOLDERS[1] / name}: not there after torchvision fetched MNIST. {REMEDY}")
    return path
