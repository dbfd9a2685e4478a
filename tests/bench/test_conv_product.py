"""The convolution product: every route gives the same, a wrong one gets no time, a missing jax is loud."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import conv_product
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lnb_bench.study import CLOCKS, load_profile

HAS_JAX = importlib.util.find_spec("jax") is not None


class Small(nn.Sequential):
    """Strides, groups, no bias, a kernel that is not square."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), nn.Tanh(),
            nn.Conv2d(6, 2, (1, 3)), nn.Flatten(),
        )  # fmt: skip


def small() -> tuple[nn.Module, conv_product.models.Batch]:
    """A few small convolutions."""
    torch.manual_seed(0)
    target = torch.tensor([0, 1])
    return Small(), (torch.rand(2, 3, 6, 8), lambda y: F.cross_entropy(y, target))


def test_all_routes_agree_and_are_timed() -> None:
    model, batch = small()
    found = conv_product.sites(model, batch[0])
    assert [site.name for site in found] == ["0", "2", "4"]
    assert [tuple(site.v.shape) for site in found] == [(4, 28), (6, 18), (2, 19)]
    conv_product.verify(found, conv_product.routes(found, with_jax=False))
    results = conv_product.measure(model, batch, 4, CLOCKS["cpu"], with_jax=False)
    assert len(results) == 4
    for row in results.values():
        assert row.pop(conv_product.JAX) is None
        assert all(entry["low"] <= entry["ratio"] <= entry["high"] for entry in row.values())


@pytest.mark.skipif(not HAS_JAX, reason="NO JAX: the outside reference is not compared; pip install './bench[jax]'")
def test_jax_agrees() -> None:
    model, batch = small()
    found = conv_product.sites(model, batch[0])
    given = conv_product.routes(found, with_jax=True)
    assert conv_product.JAX in given
    conv_product.verify(found, given)


def test_a_wrong_route_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = conv_product.ours
    monkeypatch.setattr(conv_product, "ours", lambda site: plain(site) * (1 + 1e-4))
    with pytest.raises(conv_product.WrongResult, match=r"0: matrix-free errs by 1.0e-04, .* no times"):
        conv_product.measure(*small(), 2, CLOCKS["cpu"], with_jax=False)


def test_without_jax_the_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "product.json"
    monkeypatch.setattr(conv_product.models, "unet", small)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["conv_product.py", "--rounds", "2", "--threads", "1", "--json", str(out)])
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        conv_product.main()
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)
    assert "NO JAX" in capsys.readouterr().out
    profile = load_profile(out)
    assert profile.kind == "product"
    assert all(row[conv_product.JAX] is None for row in profile.results.values())
