"""Data files that promise or unpack to far more than they should: refused by name, in a bounded memory."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lnb_bench.training import DataError
from lnb_bench.training.data import load_camvid, load_cifar10, load_mnist
from lnb_bench.training.data.mnist import read_idx

LARGE = 48 << 20  # of zeros, which gzip packs into 48 KB
ALLOWED = 4 << 20


@contextmanager
def bounded() -> Iterator[None]:
    """Require that the body never has more than :data:`ALLOWED` bytes allocated."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < ALLOWED, f"{peak} bytes"


def header(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(shape: tuple[int, ...], data: bytes, descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 2, 2), r"(more than 28|50331664) bytes, its header \[3, 2, 2\] asks for 28"),
        ((2**32 - 1, 2**32 - 1, 2**32 - 1), "asks for 79228162458924105385300197391 bytes, which its .* cannot hold"),
        ((2**31, 2**31, 4), "asks for 18446744073709551632 bytes, which its .* cannot hold"),
    ],
)
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_that_is_longer_than_its_header_says(
    tmp_path: Path, suffix: str, shape: tuple[int, int, int], message: str
) -> None:
    path = tmp_path / f"images{suffix}"
    content = header(*shape) + bytes(LARGE)
    path.write_bytes(gzip.compress(content) if suffix else content)
    del content
    with bounded(), pytest.raises(DataError, match=f"images.*{message}"):
        read_idx(path, dimensions=3)


def test_images_of_another_size_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header(1, LARGE >> 10, 1 << 10) + bytes(LARGE)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header(1) + bytes(1)))
    with (
        bounded(),
        pytest.raises(DataError, match=r"images-idx3-ubyte\.gz: images of 49152x1024 pixels, must be 28x28"),
    ):
        load_mnist(tmp_path)


def test_idx_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="images: cannot be read"):
        read_idx(tmp_path / "images", dimensions=3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda: npy((1, LARGE >> 10, 1 << 10), bytes(LARGE)), r"images is uint8 \[1, 49152, 1024\], must be uint8"),
        (lambda: npy((LARGE >> 3,), bytes(LARGE), "<f8"), r"images is float64 \[6291456\], must be uint8"),
        (lambda: npy((1, 128, 128, 3), bytes(LARGE)), r"damaged npz file \(array 'images' is to have 49152 bytes"),
        (lambda: npy((2**40, 128, 128, 3), bytes(9)), r"damaged npz file \(array 'images' is to have \d+ bytes"),
        (lambda: npy((2**62, 128, 128, 3), bytes(9)), r"damaged npz file \(array 'images' is to have \d+ bytes"),
        (lambda: npy((-1, 128, 128, 3), bytes(9)), r"damaged npz file"),
        (lambda: npy((1,), b"cos\nsystem\n", "|O"), r"images is object \[1\], must be uint8"),
        (lambda: bytes(LARGE), "damaged npz file"),
    ],
)
def test_npz_that_is_longer_than_its_header_says(tmp_path: Path, images: Callable[[], bytes], message: str) -> None:
    path = tmp_path / "camvid_train.npz"
    npz(path, images=images(), labels=npy((1, 128, 128), bytes(1 << 14)))
    with bounded(), pytest.raises(DataError, match=rf"camvid_train\.npz: {message}"):
        load_camvid(tmp_path)


def test_an_archive_that_lies_about_its_size(tmp_path: Path) -> None:
    path = tmp_path / "camvid_train.npz"
    rows = 20_000
    npz(path, images=npy((rows, 128, 128, 3), bytes(9)), labels=npy((1, 128, 128), bytes(1 << 14)))
    size = struct.pack("<I", rows * 128 * 128 * 3 + 128)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 128 + 9), size))
    with (
        bounded(),
        pytest.raises(DataError, match=r"camvid_train\.npz: its headers asks? for \d+ bytes, which its \d+ "),
    ):
        load_camvid(tmp_path)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.array([0.0, 2.5, 4.0]), r"offsets is float64 \[3\], must be whole numbers \[any\]"),
        (np.array([[0, 2, 4]]), r"offsets is int64 \[1, 3\], must be whole numbers"),
        (np.array(["0", "2", "4"]), r"offsets is <U1 \[3\], must be whole numbers"),
        (np.array([0, 2**63, 4], np.uint64), "offsets do not cut"),
        (np.array([-2, 2, 4]), "offsets do not cut"),
        (np.array([1, 2, 4]), "offsets do not cut"),
        (np.array([], np.int64), "offsets do not cut"),
        (np.array([True, True, True]), r"offsets is bool \[3\]"),
    ],
)
def test_offsets_of_the_wrong_kind(tmp_path: Path, offsets: np.ndarray, message: str) -> None:
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"cifar10_{split}.npz", jpeg=np.zeros(4, np.uint8), offsets=offsets, labels=np.zeros(2, np.uint8)
        )
    with pytest.raises(DataError, match=rf"cifar10_train\.npz: .*{message}"):
        load_cifar10(tmp_path)


def test_a_picture_that_is_larger_than_it_must_be(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (14_000, 14_000)).save(stream, "PNG")  # Pillow calls that a bomb
    picture = np.frombuffer(stream.getvalue(), np.uint8)
    offsets = np.array([0, len(picture)])
    for split in ("train", "test"):
        np.savez(tmp_path / f"cifar10_{split}.npz", jpeg=picture, offsets=offsets, labels=np.zeros(1, np.uint8))
    with bounded(), pytest.raises(DataError, match=r"cifar10_train\.npz: image 0 .*(pixels|bomb)"):
        load_cifar10(tmp_path)
