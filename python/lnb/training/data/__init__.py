"""Readers of the data sets: files in, tensors out. Images stay uint8 in memory."""

from __future__ import annotations

from lnb.training.data.camvid import load_camvid
from lnb.training.data.cifar10 import load_cifar10
from lnb.training.data.digits import load_digits
from lnb.training.data.mnist import load_mnist
from lnb.training.data.shakespeare import load_shakespeare

__all__ = ["load_camvid", "load_cifar10", "load_digits", "load_mnist", "load_shakespeare"]
