"""What both kinds of refresh kernels promise: the CUDA module's, simulated, and Triton's, interpreted. Each has a test class
derived from :class:`Contract`, which says how to run them and how much of it they can do in a short time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from cusim.refresh_support import Shape, assert_refreshed, copy, layer, orders_of, written
from torch import Tensor

from lnb.statistics.factored import factorize
from lnb.statistics.orthogonalize import inverse_root
from lnb_kernels.refresh import AveragedGradient, InputMetric
from lnb_kernels.refresh.layers import MOST_SAMPLE_RIDGE

Run = Callable[..., list[dict[str, Tensor]]]


class Contract:
    """Tests that take ``run``: layers and ``ok`` to what the kernels write."""

    shapes: ClassVar[Sequence[Shape]]
    gradients: ClassVar[Sequence[tuple[torch.dtype, int]]]  # dtypes, and widths of the weights

    def test_refresh_of_layers_of_all_shapes(self, run: Run) -> None:
        layers = [layer(shape, seed) for seed, shape in enumerate(self.shapes)]
        orders = [orders_of(of) for of in layers]
        results = iter(run([turned for of in orders for turned in of]))
        for of, turned in zip(layers, orders, strict=True):
            found = [next(results) for _ in turned]
            assert_refreshed(found, of)
            for name, value in found[0].items():
                if name in ("inverse", "output_moment", "root"):
                    assert torch.equal(value, value.mT), name

    @pytest.mark.parametrize("name", ["sample_ridge", "data_inputs"])
    def test_few_samples_add_a_limited_ridge(self, run: Run, name: str) -> None:
        plain = replace(layer(Shape(1, 1, 4, 2, 5)), sample_ridge=0.0, data_inputs=0.0)
        limited = replace(plain, ridge=plain.ridge + MOST_SAMPLE_RIDGE)
        found, right = run([replace(plain, **{name: 1e6}), limited])
        assert all(torch.equal(value, right[key]) for key, value in found.items())
        assert not torch.equal(found["inverse"], run([plain])[0]["inverse"])

    def test_the_neurons_ridge_is_relative_to_each_block(self, run: Run) -> None:
        of = layer(Shape(1, 1, 3, 2, 4, decay=0.9))
        [outputs] = of.outputs
        assert outputs.average is not None
        sizes = torch.tensor([1.0, 2.0**-14]).view(2, 1, 1)
        outputs = replace(
            outputs, average=outputs.average[:, :1] * sizes, weight=torch.zeros(1, 8, 3), bias=torch.zeros(1, 8)
        )
        roots = []
        for ridge in (0.0, 0.3):
            [found] = run([replace(of, output_ridge=ridge, outputs=(outputs,))])
            first, second = found["root"][0]
            torch.testing.assert_close(second, first * 128)
            torch.testing.assert_close(found["output_moment"], outputs.average * 0.9)  # without the ridge
            roots.append(first)
        exact = inverse_root(outputs.average[0, 0].double() * 0.9, ridge=0.3)
        torch.testing.assert_close(roots[1].double(), exact, rtol=1e-3, atol=1e-3)
        assert float((roots[0] - roots[1]).abs().max()) > 0.1

    def test_gradients_are_averaged_where_they_are_read(self, run: Run) -> None:
        for dtype, width in self.gradients:
            of = layer(Shape(1, 1, width, 1, 6))
            [outputs] = of.outputs
            share = torch.tensor(1.75, dtype=torch.float64 if dtype == torch.float32 else torch.float32)
            weight, bias = (averaged(like, dtype, share) for like in (outputs.weight, outputs.bias))
            expected = 1.75 * (0.9 * weight.average + 0.1 * weight.gradient.float()) + 0.1 * weight.gradient.float()
            torch.testing.assert_close(weight.tensor(), expected)
            formed = replace(outputs, weight=weight.tensor(), bias=bias.tensor())
            outputs = replace(outputs, weight=weight, bias=bias)
            [found], [right] = run([replace(of, outputs=(outputs,))]), run([replace(of, outputs=(formed,))])
            for name, value in found.items():
                near = 1e-3 if name == "root" else 1e-5  # a root magnifies what rounding does
                torch.testing.assert_close(value, right[name], rtol=near, atol=near * float(right[name].abs().max()))

    def test_roots_do_not_depend_on_the_size_of_gradients(self, run: Run) -> None:
        of = layer(Shape(1, 3, 3, 2, 4, decay=0.0))
        [outputs] = of.outputs
        assert isinstance(outputs.weight, Tensor)
        assert isinstance(outputs.bias, Tensor)
        scaled = [
            replace(outputs, weight=outputs.weight * scale, bias=outputs.bias * scale)
            for scale in (2.0**-120, 2.0**100)
        ]
        expected, *found = run([of, *(replace(of, outputs=(own,)) for own in scaled)])
        assert all(torch.equal(result["root"], expected["root"]) for result in found)

    @pytest.mark.parametrize("why", ["no samples", "not squarable", "not ok"])
    def test_layers_that_may_not_change_are_not_written(self, run: Run, why: str) -> None:
        kept, changed = layer(self.shapes[0], 1), layer(self.shapes[1], 2)
        ok = None
        if why == "no samples":
            kept = replace(kept, gathered=torch.zeros_like(kept.gathered))
        elif why == "not squarable":
            kept = replace(kept, squarable=torch.tensor(False))
            changed = replace(changed, squarable=torch.tensor(True))
        else:
            ok = torch.tensor(False)
            changed = replace(changed, gathered=changed.gathered * torch.nan)
        before = written(copy(kept))
        still, moved = run([kept, changed], ok)
        for name, value in still.items():
            assert torch.equal(value.nan_to_num(9.0), before[name].nan_to_num(9.0)), name
        assert bool(moved["root"].isfinite().all()) == (why != "not ok")

    def test_covariances_without_an_inverse(self, run: Run) -> None:
        """One that a larger ridge makes positive definite, one whose diagonal has to do, and inputs that are all zero."""
        side = 6
        layers: list[InputMetric] = []
        expected: list[Tensor] = []
        for entries in (0.5, -3.0, 0.0):
            product = torch.eye(side) if entries else torch.zeros(side, side)
            product[0, 1] = product[1, 0] = 1.5 * entries
            gathered = torch.zeros(1, 1, side + 1, side + 1)
            gathered[..., :side, :side] = product
            gathered[..., -1, -1] = 1
            of = layer(Shape(1, 1, side, 1, 2, bias=False, decay=0.0, relative=False))
            layers.append(replace(of, gathered=gathered, ridge=0.0 if entries == 0.5 else 1e-3))
            expected.append(factorize(gathered, layers[-1].ridge, False, inverse=True).matrix)
        for found, right in zip(run(layers), expected, strict=True):
            torch.testing.assert_close(found["inverse"], right, rtol=1e-5, atol=1e-5)
            assert bool(found["root"].isfinite().all())

    def test_moments_without_a_root_get_a_multiple_of_the_identity(self, run: Run) -> None:
        of = layer(Shape(1, 1, 3, 2, 4, decay=0.9))
        [outputs] = of.outputs
        assert outputs.average is not None
        average = torch.zeros_like(outputs.average)
        average[0, 0] = torch.eye(4) * 10
        average[0, 0, 0, 1] = average[0, 0, 1, 0] = 1000  # far from positive semi-definite
        nothing = torch.zeros_like(outputs.weight), torch.zeros_like(outputs.bias)  # type: ignore[arg-type]
        [found] = run([replace(of, outputs=(replace(outputs, weight=nothing[0], bias=nothing[1], average=average),))])
        torch.testing.assert_close(found["output_moment"], average * 0.9)
        torch.testing.assert_close(found["root"], inverse_root(average * 0.9, ridge=of.output_ridge))
        assert torch.equal(found["root"][0, 0].count_nonzero(), torch.tensor(4))
        assert bool((found["root"][0, 1].diagonal() > 1).all())  # of a zero moment


def averaged(like: Any, dtype: torch.dtype, share: Tensor) -> AveragedGradient:
    """A gradient of ``dtype`` and an average, whose combination is formed where it is read."""
    return AveragedGradient(torch.randn_like(like).to(dtype), torch.randn_like(like), share, 0.9, 0.1)
