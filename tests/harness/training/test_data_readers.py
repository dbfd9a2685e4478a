"""The readers: real files give what is published of them, damaged ones an error that names file and remedy."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lnb_bench.training import DataError
from lnb_bench.training.data import load_camvid, load_cifar10, load_digits, load_mnist, load_shakespeare
from lnb_bench.training.data.mnist import read_idx

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_other_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the machine's data folder nor its cache is looked at unless a test says so."""
    monkeypatch.delenv("LNB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, suffix: str) -> dict[str, np.ndarray]:
    """Four small files in the layout ``folder``; the arrays by name."""
    random = np.random.default_rng(0)
    arrays = {}
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, rows in (("train", 20), ("t10k", 10)):
        arrays[f"{prefix}-images-idx3-ubyte"] = random.integers(0, 256, (rows, 28, 28), np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = random.integers(0, 10, rows, np.uint8)
    for name, array in arrays.items():
        content = idx(array)
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return arrays


def write_camvid(folder: Path, **changes: np.ndarray | None) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "images": random.integers(0, 256, (2, 128, 128, 3), np.uint8),
        "labels": random.choice(np.array([0, 10, 255], np.uint8), (2, 128, 128)),
    }
    for split in ("train", "test"):
        chosen = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
        np.savez(folder / f"camvid_{split}.npz", **chosen)


# -- the real files ---------------------------------------------------------------------------------------------------


def test_real_mnist(real_data: Path) -> None:
    train, test = load_mnist(real_data)
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert hashlib.md5(idx(train.images[:, 0].numpy())).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert torch.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels, _ = train.batch(torch.arange(60000), CPU)
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)


def test_real_cifar10(real_data: Path) -> None:
    train, test = load_cifar10(real_data)
    for split, rows, mean in ((train, 50000, (0.4913, 0.4821, 0.4465)), (test, 10000, (0.4941, 0.4851, 0.4504))):
        assert split.images.shape == (rows, 3, 32, 32)
        assert split.images.dtype == torch.uint8
        assert torch.bincount(split.labels).tolist() == [rows // 10] * 10
        means = split.images.double().mean((0, 2, 3)) / 255
        torch.testing.assert_close(means, torch.tensor(mean, dtype=torch.float64), atol=1e-4, rtol=0)
    x, y = train.batch(torch.arange(5000), CPU)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.mean().abs().item() < 0.05
    assert x.std().item() == pytest.approx(1, abs=0.05)


def test_real_camvid(real_data: Path) -> None:
    train, test = load_camvid(real_data, size=128)
    assert train.images.shape == (367, 3, 128, 128)
    assert test.labels.shape == (233, 128, 128)
    share = torch.bincount(train.labels.flatten().long(), minlength=256) / train.labels.numel()
    assert share[3].item() == pytest.approx(0.3166, abs=1e-4)
    assert share[255].item() == pytest.approx(0.0395, abs=1e-4)
    assert share[11:255].sum() == 0
    small, _ = load_camvid(real_data, size=64)
    assert small.images.shape == (367, 3, 64, 64)
    assert small.labels.shape == (367, 64, 64)
    x, _ = small.batch(torch.arange(367), CPU)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=5e-3, rtol=0)


def test_real_shakespeare(real_data: Path) -> None:
    train, test, vocabulary = load_shakespeare(real_data, context=16)
    assert vocabulary == 65
    assert (len(train.tokens), len(test.tokens)) == (1003854, 111540)
    alphabet = np.unique(np.fromfile(real_data / "tinyshakespeare.txt", np.uint8))
    x, y = train.batch(torch.tensor([0, 1]), CPU)
    assert bytes(alphabet[x[0].numpy()]) == b"First Citizen:\nB"
    assert torch.equal(x[0, 1:], y[0, :-1])
    assert y[0, -1] == x[1, 0]


def test_digits() -> None:
    train, test = load_digits()
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    x, y = train.batch(torch.arange(1437), CPU)
    assert x.min() == 0
    assert x.max() == 1
    assert sorted(set(y.tolist())) == list(range(10))


def test_inverted_images_are_one_minus_the_pixels() -> None:
    (plain, _), (inverted, _) = load_digits(), load_digits(invert=True)
    rows = torch.arange(10)
    torch.testing.assert_close(inverted.batch(rows, CPU)[0], 1 - plain.batch(rows, CPU)[0])


# -- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("layout", ["mnist", "MNIST/raw", "."])
def test_mnist_layouts(tmp_path: Path, layout: str, suffix: str) -> None:
    arrays = write_mnist(tmp_path / layout, suffix)
    train, test = load_mnist(tmp_path)
    assert np.array_equal(train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(test.labels.numpy(), arrays["t10k-labels-idx1-ubyte"])


def test_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist", "")
    monkeypatch.setenv("LNB_DATA", str(tmp_path))
    assert len(load_mnist()[0]) == 20
    monkeypatch.setenv("LNB_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="none: no such folder; LNB_DATA"):
        load_mnist()


def test_cache_is_used_without_a_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "cache" / "lnb" / "MNIST" / "raw", "")
    assert len(load_mnist()[1]) == 10


def test_pickled_cifar10_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({b"data": rows, b"labels": [0, 9, 3, 1]}, protocol=2))
    train, test = load_cifar10(tmp_path)
    assert len(train) == 20
    assert np.array_equal(test.images.numpy(), rows.reshape(4, 3, 32, 32))
    assert test.labels.tolist() == [0, 9, 3, 1]


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "owned").encode())
    with pytest.raises(DataError, match=r"data_batch_1: damaged.*system is not allowed"):
        load_cifar10(tmp_path)
    assert not (tmp_path / "owned").exists()


# -- damaged and missing files ----------------------------------------------------------------------------------------


def test_truncated_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", ".gz")
    path = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz: damaged gzip file.*again"):
        load_mnist(tmp_path)


def test_corrupt_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", ".gz")
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: damaged gzip file"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x08\x01" + bytes(40), "starts with 00 00 08 01, an IDX file of 3-d bytes with 00 00 08 03"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated inside its header"),
        (idx(np.zeros((3, 2, 2), np.uint8))[:-1], r"27 bytes, its header \[3, 2, 2\] asks for 28"),
        (idx(np.zeros((3, 2, 2), np.uint8)) + b"x", r"29 bytes, its header \[3, 2, 2\] asks for 28"),
    ],
)
def test_wrong_idx_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"images: .*{message}"):
        read_idx(path, dimensions=3)


def test_labels_that_do_not_fit_the_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, "")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(DataError, match="19 labels for the 20 images"):
        load_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10, np.uint8)))
    with pytest.raises(DataError, match="label 10 is not below 10"):
        load_mnist(tmp_path)


def test_missing_files_name_file_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mnist/train-images-idx3-ubyte\.gz: no such file.*torchvision"):
        load_mnist(tmp_path)
    with pytest.raises(DataError, match=r"cifar10_train\.npz: no such file.*torchvision"):
        load_cifar10(tmp_path)
    with pytest.raises(DataError, match=r"camvid_train\.npz: no such file.*Put"):
        load_camvid(tmp_path)
    with pytest.raises(DataError, match=r"tinyshakespeare\.txt: no such file.*Put"):
        load_shakespeare(tmp_path)
    with pytest.raises(DataError, match=r"no data folder is known; pass --data DIR or set LNB_DATA"):
        load_camvid()
    with pytest.raises(DataError, match="nowhere: no such folder; --data"):
        load_camvid(tmp_path / "nowhere")


def test_fetching_without_torchvision_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.datasets", None)
    for load in (load_mnist, load_cifar10):
        with pytest.raises(DataError, match="pip install torchvision"):
            load()


def test_npz_without_a_key(tmp_path: Path) -> None:
    write_camvid(tmp_path, labels=None)
    with pytest.raises(DataError, match=r"camvid_train\.npz: has no array 'labels', only images"):
        load_camvid(tmp_path)


def test_npz_of_the_wrong_shape(tmp_path: Path) -> None:
    write_camvid(tmp_path, images=np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"images is uint8 \[2, 64, 64, 3\], must be uint8 \[any, 128, 128, 3\]"):
        load_camvid(tmp_path)


def test_damaged_npz(tmp_path: Path) -> None:
    write_camvid(tmp_path)
    path = tmp_path / "camvid_train.npz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", whole[: len(whole) // 2], bytes(flipped), b"not an archive"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"camvid_train\.npz: damaged npz file"):
            load_camvid(tmp_path)


def test_void_is_allowed_and_size_must_divide(tmp_path: Path) -> None:
    write_camvid(tmp_path)
    train, _ = load_camvid(tmp_path, size=32)
    assert set(train.labels.unique().tolist()) == {0, 10, 255}
    with pytest.raises(ValueError, match="size=48 must divide 128"):
        load_camvid(tmp_path, size=48)


def jpeg_archive(folder: Path, **changes: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(stream, "JPEG")
    one = np.frombuffer(stream.getvalue(), np.uint8)
    arrays = {
        "jpeg": np.concatenate([one, one]),
        "offsets": np.array([0, len(one), 2 * len(one)], np.uint32),
        "labels": np.array([1, 2], np.uint8),
    }
    for split in ("train", "test"):
        np.savez(folder / f"cifar10_{split}.npz", **{**arrays, **changes})


def test_jpeg_archive(tmp_path: Path) -> None:
    jpeg_archive(tmp_path)
    train, _ = load_cifar10(tmp_path)
    assert train.images.shape == (2, 3, 32, 32)
    assert train.images.unique().tolist() == [90]
    jpeg_archive(tmp_path, offsets=np.array([0, 5], np.uint32))
    with pytest.raises(DataError, match="offsets do not cut"):
        load_cifar10(tmp_path)
    jpeg_archive(tmp_path, jpeg=np.zeros(4, np.uint8), offsets=np.array([0, 2, 4], np.uint32))
    with pytest.raises(DataError, match="image 0 is damaged"):
        load_cifar10(tmp_path)


def test_short_text(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_bytes(b"to be or not to be")
    with pytest.raises(DataError, match="18 bytes are too few"):
        load_shakespeare(tmp_path)
