"""Readers of the data sets: files in, tensors out. Images stay uint8 in memory."""

from __future__ import annotations

from lnb_bench.training.data.camvid import load_camvid
from lnb_bench.training.data.cifar10 import load_cifar10
from lnb_bench.training.data.digits import load_digits
from lnb_bench.training.data.manual import load_manual
from lnb_bench.training.data.mnist import load_mnist
from lnb_bench.training.data.shakespeare import load_shakespeare, load_shakespeare_bytes
from lnb_bench.training.data.tables import load_diabetes, load_diamonds

__all__ = [
    "load_camvid",
    "load_cifar10",
    "load_diabetes",
    "load_diamonds",
    "load_digits",
    "load_manual",
    "load_mnist",
    "load_shakespeare",
    "load_shakespeare_bytes",
]
