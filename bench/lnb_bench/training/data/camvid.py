"""CamVid road scenes, 11 classes, from npz files of 128x128 images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lnb_bench.training.data.archives import read_npz
from lnb_bench.training.data.files import check_labels, data_folder, require
from lnb_bench.training.data.splits import ImageSplit
from lnb_bench.training.errors import DataError

CLASSES, VOID, SIDE = 11, 255, 128
MEAN, STD = (0.4119, 0.4251, 0.4327), (0.2965, 0.3007, 0.2968)
REMEDY = (
    "Put camvid_train.npz and camvid_test.npz (arrays `images` and `labels`) there; CamVid cannot be fetched by itself"
)


def load_camvid(data: Path | None = None, *, size: int = 64, invert: bool = False) -> tuple[ImageSplit, ImageSplit]:
    """Training (367) and test (233) images ``[N, 3, size, size]`` with labels ``[N, size, size]``; 255 is void.

    Images are averaged down from 128x128; labels keep every ``128 / size``-th pixel.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: ``size`` does not divide 128.
    """
    if size < 1 or SIDE % size:
        raise ValueError(f"size={size} must divide {SIDE}")
    folder, stride = data_folder(data), SIDE // size
    splits = []
    for split in ("train", "test"):
        path = require(folder, f"camvid_{split}.npz", REMEDY)
        forms = {"images": ("uint8", (None, SIDE, SIDE, 3)), "labels": ("uint8", (None, SIDE, SIDE))}
        images, labels = read_npz(path, forms)
        if len(images) != len(labels):
            raise DataError(f"{path}: {len(labels)} label maps for {len(images)} images; replace the file")
        check_labels(path, labels, CLASSES, ignore=VOID)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        if stride > 1:
            pixels = F.avg_pool2d(pixels.float(), stride).round().to(torch.uint8)
        # The middle of each block stands for it.
        classes = torch.from_numpy(labels[:, stride // 2 :: stride, stride // 2 :: stride].copy())
        splits.append(ImageSplit(pixels, classes, mean=MEAN, std=STD, invert=invert))
    return splits[0], splits[1]
