"""Rates of a device: measured once, cached on disk, recovered from any damage, and a function of nothing else."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lnb.planning import Rates, cache, calibration, rates_for
from lnb.planning.rates import KINDS, default_rates

CPU = torch.device("cpu")
KEY = {"device": "a device", "threads": "2"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LNB_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that were measured: none really is."""
    calls: list[torch.device] = []

    def measure(device: torch.device) -> Rates:
        calls.append(device)
        return some_rates(1e-6 * len(calls))

    monkeypatch.setattr(calibration, "measure", measure)
    return calls


def some_rates(overhead: float = 1e-6) -> Rates:
    return Rates(overhead, 1e10, {f"{kind}/float32": ((16, 1e9), (64, 4e9)) for kind in KINDS})


def test_rates_survive_the_cache_exactly(folder: Path) -> None:
    rates = some_rates(1 / 3 * 1e-6)
    assert cache.load(KEY) is None
    assert cache.store(KEY, rates)
    assert cache.load(KEY) == rates
    assert cache.load({**KEY, "threads": "4"}) is None
    assert [path.suffix for path in (folder / "rates").iterdir()] == [".json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"null",
        b"[" * 100000,
        json.dumps({"format": 0, "key": KEY, "rates": some_rates().as_dict()}).encode(),
        json.dumps({"format": 1, "key": {}, "rates": some_rates().as_dict()}).encode(),
        json.dumps({"format": 1, "key": KEY, "rates": {**some_rates().as_dict(), "overhead": -1}}).encode(),
        json.dumps({"format": 1, "key": KEY, "rates": {**some_rates().as_dict(), "bandwidth": "fast"}}).encode(),
        json.dumps({"format": 1, "key": KEY, "rates": {**some_rates().as_dict(), "curves": {}}}).encode(),
        json.dumps({"format": 1, "key": KEY, "rates": {**some_rates().as_dict(), "curves": [1]}}).encode(),
        json.dumps({"format": 1, "key": KEY, "rates": some_rates().as_dict()}).encode() + b" " * 10_000,
    ],
    ids=lambda content: content[:60],
)
def test_a_damaged_file_is_measured_again_and_replaced(
    folder: Path, measured: list[torch.device], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(calibration, "key", lambda device: KEY)
    path = cache.path_of(KEY)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    first = rates_for(CPU)
    assert measured == [CPU]
    assert rates_for(CPU) == first
    assert measured == [CPU]  # from the cache


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, measured: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = tmp_path / "file"
    blocking.write_text("not a folder")
    monkeypatch.setenv("LNB_CACHE", str(blocking))
    assert rates_for(CPU).overhead == pytest.approx(1e-6)
    assert rates_for(CPU).overhead == pytest.approx(2e-6)
    assert blocking.read_text() == "not a folder"


def test_a_named_pipe_in_place_of_the_cache_keeps_nobody_waiting(folder: Path, measured: list[torch.device]) -> None:
    rates_for(CPU)
    (file,) = (folder / "rates").iterdir()
    file.unlink()
    os.mkfifo(file)
    with alarm(20):
        assert rates_for(CPU).overhead == pytest.approx(2e-6)  # measured again, and stored in place of the pipe
        assert rates_for(CPU).overhead == pytest.approx(2e-6)
    assert file.is_file()


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Fail if the body takes longer."""

    def stop(*_: object) -> None:
        raise AssertionError(f"not done in {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind others than the superuser only")
def test_a_read_only_folder_is_done_without(folder: Path, measured: list[torch.device]) -> None:
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert rates_for(CPU) == some_rates(1e-6)
    assert not list(folder.iterdir())


def test_a_device_that_cannot_be_measured_has_default_rates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> Rates:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(calibration, "measure", fail)
    assert rates_for(CPU) == default_rates(CPU)
    assert not folder.exists()
    assert default_rates(torch.device("cuda")) != default_rates(CPU)


def test_a_device_that_broke_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> Rates:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(calibration, "measure", fail)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        rates_for(CPU)


@pytest.mark.parametrize(
    ("own", "base", "where"),
    [("own", "base", "own"), (None, "base", "base/lnb"), ("", "base", "base/lnb"), (None, None, "home/.cache/lnb")],
)
def test_where_the_cache_is(
    own: str | None, base: str | None, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LNB_CACHE", own), ("XDG_CACHE_HOME", base), ("HOME", "home")):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    assert cache.cache_directory() == tmp_path / where


def test_measuring_covers_every_kind_and_leaves_the_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "BUDGET", 0.0)  # the middle sizes only
    before = torch.random.get_rng_state()
    rates = calibration.measure(CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {name.partition("/")[0] for name in rates.curves} == set(KINDS)
    assert all(len(curve) == 1 for curve in rates.curves.values())
    assert 1e6 < rates.bandwidth < 1e14
    assert 1e-9 < rates.overhead < 1e-2


def test_seconds_are_interpolated_between_sizes_and_constant_beyond() -> None:
    rates = some_rates()
    for size, rate in ((1, 1e9), (16, 1e9), (32, 2e9), (64, 4e9), (1000, 4e9)):
        assert rates.seconds("gram", torch.float32, size, 1e9) == pytest.approx(1e9 / rate)
    assert rates.seconds("gram", torch.float64, 16, 1e9) == pytest.approx(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overhead": 0.0}, "overhead=0.0 must be in (0, inf)"),
        ({"bandwidth": float("nan")}, "bandwidth=nan must be"),
        ({"curves": {}}, "matmul, gram, batched, factor, conv, conv_gram is missing"),
        ({"curves": {**some_rates().curves, "gram/float64": ((4, 1.0), (2, 1.0))}}, "[4, 2], must be ascending"),
        ({"curves": {**some_rates().curves, "gram/float64": ((4, -1.0),)}}, "'gram/float64'=-1.0 must be"),
    ],
)
def test_wrong_rates_are_refused(change: dict[str, object], words: str) -> None:
    values = {"overhead": 1e-6, "bandwidth": 1e10, "curves": some_rates().curves, **change}
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the words are checked below
        Rates(**values)  # type: ignore[arg-type]
    assert words in str(raised.value)
