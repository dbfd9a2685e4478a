"""The refresh by Triton, interpreted, against float64: all that the CUDA kernels are held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton_sanitizer
from cusim.refresh_support import NOISE_LEVEL, SHAPES, Shape, copy, layer, plain, written
from support import assert_close_to_reference
from torch import Tensor
from triton_support import DEVICE

from lnb.factored import factorize
from lnb.orthogonalize import QUINTIC, STEPS, inverse_root
from lnb_kernels.refresh import AveragedGradient, InputMetric, triton_kernel

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu", reason="tensors of these tests are on the CPU; make gpu has the others"
)


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    with triton_sanitizer.through_tables(triton_kernel):
        yield


def run(layers: list[InputMetric], ok: Tensor | None = None) -> list[dict[str, Tensor]]:
    own = [copy(of) for of in layers]
    triton_kernel.refresh_metrics(own, ok, NOISE_LEVEL, QUINTIC, STEPS)
    return [written(of) for of in own]


def test_refresh_of_layers_of_all_shapes() -> None:
    shapes = (*SHAPES, Shape(1, 10, 3, 2, 18))  # more blocks of inputs than a program takes
    layers = [layer(shape, seed) for seed, shape in enumerate(shapes)]
    for of, result in zip(layers, run(layers), strict=True):
        truth, same = plain(of, torch.float64), plain(of, torch.float32)
        assert result.keys() == truth.keys()
        for name, value in result.items():
            try:
                assert_close_to_reference(value, truth[name], same[name])
            except AssertionError as error:
                raise AssertionError(f"{name} of {tuple(of.inverse.shape)}: {error}") from None
            if name in ("inverse", "output_moment", "root"):
                assert torch.equal(value, value.mT), name
