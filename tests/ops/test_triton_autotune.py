"""The autotune cache: off by default, fastest kept on disk, damaged files survived, never for an in-place launch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from triton_support import DEVICE

import lnb_kernels as lk
from lnb_kernels._backend import KernelUnavailable
from lnb_kernels._triton import autotune
from lnb_kernels._triton.arch import ARCHS, arch_of
from lnb_kernels._triton.gram_launch import tile_candidates, tile_config
from lnb_kernels.second_moment import reference
from lnb_kernels.second_moment import triton_kernel as kernel


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "deep" / "cache.json"
    lk.set_autotune_cache(path)
    yield path
    lk.set_autotune_cache(None)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """A clock under which the third configuration is the fastest; the calls it was asked to time."""
    calls: list[Callable[[], object]] = []

    def fake(call: Callable[[], object]) -> float:
        calls.append(call)
        call()
        return 1.0 if len(calls) == 3 else 2.0

    monkeypatch.setattr(autotune, "milliseconds", fake)
    return calls


def test_nothing_is_measured_by_default(timer: list[Callable[[], object]]) -> None:
    assert not autotune.enabled()
    kernel.second_moment(torch.randn(9, 5, device=DEVICE))
    assert timer == []


def test_the_fastest_is_kept_on_disk(cache: Path, timer: list[Callable[[], object]]) -> None:
    x = torch.randn(20, 5, device=DEVICE)
    expected = reference.second_moment(x)
    torch.testing.assert_close(kernel.second_moment(x), expected)
    candidates = tile_candidates(5, 4, arch_of(x.device))
    assert len(timer) == len(candidates)
    ((name, config),) = json.loads(cache.read_text()).items()
    assert tuple(config) == candidates[2]
    assert "gram" in name
    assert "triton" in name
    lk.set_autotune_cache(cache)  # as a new process: read from the file
    torch.testing.assert_close(
        kernel.second_moment(torch.cat((x, x))[:31]), reference.second_moment(torch.cat((x, x))[:31])
    )
    assert len(timer) == len(candidates), "31 rows share the entry of 20"
    kernel.second_moment(torch.cat((x, x)))
    assert len(timer) == 2 * len(candidates), "40 rows do not"


def test_launches_in_place_are_never_repeated(cache: Path, timer: list[Callable[[], object]]) -> None:
    x = torch.randn(20, 5, device=DEVICE)
    s = torch.zeros(6, 6, device=DEVICE)
    kernel.second_moment_ema_(s, x, 0.5)
    torch.testing.assert_close(s, 0.5 * reference.second_moment(x))
    assert timer == []
    assert not cache.exists()


def test_configurations_that_fail_are_passed_over(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "milliseconds", lambda call: call())

    def run(config: tuple[int, ...]) -> float:
        if config == (2,):
            raise KernelUnavailable("out of resources")
        if config == (1,):
            raise AttributeError("a fault of our own")
        return float(config[0])

    assert autotune.fastest("a", [(3,), (2,), (4,)], run) == (3,)
    assert autotune.fastest("b", [(2,)], run) == (2,)
    assert json.loads(cache.read_text()) == {"a": [3]}
    with pytest.raises(AttributeError, match="our own"):
        autotune.fastest("c", [(3,), (1,)], run)
    assert autotune.fastest("a", [(4,), (5,)], run) == (4,), "an entry that is no candidate any more is measured again"


def test_a_damaged_file_is_one_warning(cache: Path, timer: list[Callable[[], object]]) -> None:
    cache.parent.mkdir()
    cache.write_text("{")
    x = torch.randn(20, 5, device=DEVICE)
    with pytest.warns(RuntimeWarning, match=r"cache\.json cannot be read"):
        result = kernel.second_moment(x)
    torch.testing.assert_close(result, reference.second_moment(x))
    assert len(json.loads(cache.read_text())) == 1


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("d", [8, 100, 4096])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_candidates_start_with_the_heuristic_and_fit(arch: str, d: int, itemsize: int) -> None:
    candidates = tile_candidates(d, itemsize, ARCHS[arch])
    assert candidates[0] == tile_config(d, itemsize, ARCHS[arch])
    assert len(set(candidates)) == len(candidates) > 2
    for block_i, block_j, block_n, _, stages in candidates:
        assert block_i in (block_j, 2 * block_j)
        assert (block_i + block_j) * block_n * itemsize * stages <= ARCHS[arch].shared_bytes


def test_a_path_is_needed() -> None:
    with pytest.raises(TypeError, match="path must be a path"):
        lk.set_autotune_cache(3)  # type: ignore[arg-type]
