"""Inverses and solutions from Cholesky factors, by PyTorch's calls and by those that never wait for the device."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from support import assert_close_to_reference
from torch import Tensor

from lnb_kernels import cholesky


class OnDevice:
    """As much of a tensor as the rule looks at."""

    def __init__(self, device: str, *shape: int) -> None:
        self.device, self.shape = torch.device(device), torch.Size(shape)


@pytest.mark.parametrize(
    ("device", "shape", "version", "magma", "expected"),
    [
        ("cuda", (3, 4, 4), "2.10.0+cu128", True, True),
        ("cuda", (2, 2, 4, 4), "2.12.1", True, True),
        ("cuda", (3, 4, 4), "2.13.0a0+git1", True, False),
        ("cuda", (3, 4, 4), "3.0.0", True, False),
        ("cuda", (3, 4, 4), "2.10.0", False, False),
        ("cuda", (1, 4, 4), "2.10.0", True, False),
        ("cuda", (4, 4), "2.10.0", True, False),
        ("cpu", (3, 4, 4), "2.10.0", True, False),
    ],
)
def test_which_releases_wait(
    device: str, shape: tuple[int, ...], version: str, magma: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "has_magma", magma)
    assert cholesky.waits(cast(Any, OnDevice(device, *shape)), version) is expected


@pytest.mark.parametrize("lead", [(2, 3), (11,)])
@pytest.mark.parametrize("waits", [True, False])
def test_both_ways_are_right(waits: bool, lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where matrices are many and large, as they count from two and three here."""
    monkeypatch.setattr(cholesky, "waits", lambda _: waits)
    monkeypatch.setattr(cholesky, "_TOGETHER", 2)
    monkeypatch.setattr(cholesky, "_ROWS", 3)
    if waits:  # the calls that wait are not made
        calls = {"cholesky_inverse": torch.cholesky_inverse, "cholesky_solve": torch.cholesky_solve}
        for name in calls:
            monkeypatch.setattr(torch, name, None)
    else:
        calls = {"cholesky_inverse": torch.cholesky_inverse, "cholesky_solve": torch.cholesky_solve}
    x, right = torch.randn(*lead, 40, 9), torch.randn(*lead, 9, 4)
    matrices = x.mT @ x / 40 + 0.1 * torch.eye(9)
    lower = torch.linalg.cholesky(matrices)

    def check(actual: Tensor, truth: Tensor, plain: Tensor) -> None:
        assert_close_to_reference(actual, truth, plain)

    wide = lower.double() @ lower.double().mT
    check(cholesky.cholesky_inverse(lower), torch.linalg.inv(wide), calls["cholesky_inverse"](lower))
    check(
        cholesky.cholesky_solve(right, lower),
        torch.linalg.solve(wide, right.double()),
        calls["cholesky_solve"](right, lower),
    )
    check(
        cholesky.triangular_solve(lower, right),
        torch.linalg.solve(lower.double(), right.double()),
        torch.linalg.solve_triangular(lower, right, upper=False),
    )
