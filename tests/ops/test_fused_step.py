"""``direct_layers_`` and ``finish_layers_``: their specification against the ops of which they are made, and bad arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cusim.fused_layers import DECAY, RADIUS, SETTINGS, TAKE, Layers, Shape
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels import multi_tensor
from lnb_kernels.fused_step import direct_layers_, finish_layers_, partial_count
from lnb_kernels.fused_step.reference import bias_weights
from lnb_kernels.step_tables import StepSettings

SHAPES = [Shape(6, 8, 3, 4, groups=2), Shape(4, 6, 4, 2, bias=False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_are_averages_and_two_sided_directions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = Layers.random(SHAPES).copy(dtype)
    layers.numbers["row_scales"] = layers.numbers["row_scales"].float()
    layers.steps = layers.steps.float()
    layers.shares, layers.bias_shares = layers.shares.double(), layers.shares.double()
    layers.partials, layers.mixed_biases = layers.partials.double(), layers.mixed_biases.double()
    layers.input_size = layers.input_size.double()
    layers.numbers = {name: x if name == "row_scales" else x.double() for name, x in layers.numbers.items()}
    before = layers.copy()

    def ahead(averages: list[Tensor], gradients: list[Tensor], shares: Tensor) -> list[Tensor]:
        return multi_tensor.ema_combined_([a.clone() for a in averages], gradients, DECAY, shares, TAKE)

    weights = ahead(before.momentum, before.gradients, before.shares)
    bias, bias_gradient = before.bias_momentum[0], before.bias_gradients[0]
    assert bias is not None
    assert bias_gradient is not None
    [of_bias] = ahead([bias], [bias_gradient], before.shares[:1])
    of_bias = of_bias.view(2, 6, 1)
    layers.direct()
    layers.finish()
    rows = [s.rows for s in SHAPES]
    correction = 1 - SETTINGS.b_rows ** layers.steps.double()
    squares = [
        (part / correction[i]).view(SHAPES[i].groups, SHAPES[i].m)
        for i, part in enumerate(layers.numbers["row_square"].split(rows))
    ]
    counted = bias_weights(layers.input_size.double())
    metrics = layers.inverses, layers.means, layers.roots
    sums = lk.two_sided_directions_(weights, [of_bias, None], *metrics, squares, counted)
    scales = layers.numbers["row_scales"].to(dtype).split(rows)
    for i, weight in enumerate(weights):
        torch.testing.assert_close(
            layers.directions[i] * scales[i].view(*weight.shape[:2], 1), weight, rtol=1e-5, atol=1e-6
        )
    own = layers.bias_directions[0]
    assert own is not None
    torch.testing.assert_close(own.view_as(of_bias), of_bias, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layers.numbers["sums"], torch.stack([sums[:2].sum(0), sums[2]]), rtol=1e-5, atol=0)


def test_all_of_the_average_and_nothing_of_the_gradient() -> None:
    """The direction is then the average's own, row by row."""
    layers = Layers.random([Shape(4, 6, 4, 3, bias=False)])
    layers.shares.fill_(1.0)
    kept = layers.momentum[0].clone()
    direct_layers_(
        layers.directions, layers.momentum, layers.partials, layers.mixed_biases, [torch.zeros(1, 4, 6)], [None], [None],
        layers.inverses, [None], layers.roots, layers.shares, None, 1.0, 0.0,
    )  # fmt: skip
    assert torch.equal(layers.momentum[0], kept)
    expected = [layers.directions[0].clone()]
    lk.two_sided_directions_([kept], [None], layers.inverses, [None], layers.roots)
    torch.testing.assert_close(
        torch.nn.functional.normalize(expected[0], dim=-1), torch.nn.functional.normalize(kept, dim=-1)
    )


def test_no_layers_are_no_call() -> None:
    nothing: list[Any] = []
    empty = torch.empty(0, dtype=torch.float64)
    assert partial_count([], []) == 0
    direct_layers_(
        nothing, nothing, empty, empty, nothing, nothing, nothing, nothing, nothing, nothing, empty, None, 0.5, 0.5
    )
    finish_layers_(
        nothing, nothing, *[empty] * 14, nothing, [], [], empty, [], None, [], [], None, SETTINGS,
    )  # fmt: skip


@pytest.mark.parametrize("op", ["direct_layers_", "finish_layers_"])
def test_schema_and_fake(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema names all that is written, and the fake runs."""
    calls: list[tuple[Any, ...]] = []
    module = __import__("lnb_kernels.fused_step.op", fromlist=["op"])
    monkeypatch.setattr(module, f"_{op}", lambda *args: calls.append(args))
    layers = Layers.random(SHAPES)
    if op == "direct_layers_":
        layers.direct()
    else:
        layers.finish()
    overload = getattr(torch.ops.lnb_kernels, op).default
    torch.library.opcheck(overload, calls[0], test_utils=("test_schema", "test_faketensor"))


Change = Callable[[Layers], None]


def put(name: str, place: int, value: Any) -> Change:
    def change(layers: Layers) -> None:
        entries = getattr(layers, name)
        entries[place] = value(entries[place]) if callable(value) else value

    return change


def replace(name: str, value: Callable[[Tensor], Any]) -> Change:
    return lambda layers: setattr(layers, name, value(getattr(layers, name)))


def number(name: str, value: Callable[[Tensor], Any]) -> Change:
    return lambda layers: layers.numbers.update({name: value(layers.numbers[name])})


DIRECT: list[tuple[Change, type[Exception], str]] = [
    (replace("momentum", lambda x: x[0]), TypeError, "momentum must be a list, got Tensor"),
    (replace("roots", lambda x: x[:1]), ValueError, "roots has 1 entries, allowed is one for each of directions, 2"),
    (put("momentum", 1, None), TypeError, "layer 1: momentum must be a torch.Tensor"),
    (put("momentum", 1, Tensor.bfloat16), TypeError, r"layer 1: momentum is torch.bfloat16; allowed is float32"),
    (put("directions", 1, Tensor.half), TypeError, r"layer 1: directions is torch.float16"),
    (put("directions", 1, Tensor.bfloat16), TypeError, r"directions\[1\] is torch.bfloat16, but directions\[0\]"),
    (put("gradients", 0, Tensor.half), TypeError, "layer 0: bias_gradients is torch.float32; allowed is float16"),
    (put("gradients", 1, lambda x: x[0]), ValueError, r"layer 1: gradients has shape \(4, 6\)"),
    (put("gradients", 1, lambda x: x.to("meta")), ValueError, "layer 1: gradients is on meta"),
    (put("inverses", 1, lambda x: x[:, :2]), ValueError, r"layer 1: inverses has shape .* \[\.\.\., 6 / size"),
    (put("roots", 0, lambda x: x[..., :2]), ValueError, "layer 0: roots has shape"),
    (put("means", 0, None), ValueError, "bias_gradients, bias_momentum, means come together, but means is None"),
    (put("means", 0, lambda x: x[:, 1:]), ValueError, "layer 0: means"),
    (put("bias_momentum", 0, lambda x: x[1:]), ValueError, "layer 0: bias_momentum has shape .*one entry per row, 12"),
    (replace("partials", lambda x: x[1:]), ValueError, "partials has shape"),
    (replace("partials", Tensor.float), TypeError, "partials is torch.float32; allowed is float64"),
    (replace("mixed_biases", lambda x: x[1:]), ValueError, "mixed_biases has shape"),
    (replace("shares", lambda x: x[:1]), ValueError, r"shares has shape \(1,\), allowed is \(2,\)"),
    (replace("bias_shares", lambda _: None), ValueError, "bias_shares is None, but there are biases"),
    (lambda x: put("directions", 0, x.momentum[0])(x), ValueError, "overlap in memory"),
    (lambda x: put("momentum", 0, x.gradients[0])(x), ValueError, "overlap in memory"),
    (put("momentum", 1, lambda x: x.requires_grad_()), RuntimeError, "momentum require grad"),
]
FINISH: list[tuple[Change, type[Exception], str]] = [
    (put("bias_directions", 0, None), ValueError, "come together, but bias_directions is None"),
    (put("bias_gradients", 0, lambda x: x[1:]), ValueError, "layer 0: bias_gradients has shape"),
    (put("bias_momentum", 0, Tensor.half), TypeError, "layer 0: bias_momentum is torch.float16"),
    (number("row_scales", Tensor.double), TypeError, "row_scales is torch.float64; allowed is float32"),
    (number("row_square", lambda x: x[1:]), ValueError, "row_square has shape"),
    (number("radius", lambda x: x.repeat(2)[::2]), ValueError, "radius is not contiguous"),
    (number("sums", lambda x: x[:, :3]), ValueError, r"sums has shape \(2, 3\), allowed is \(2, 4\)"),
    (lambda x: x.numbers.update(growth=x.numbers["radius"]), ValueError, "overlap in memory"),
    (replace("input_size", lambda x: x[1:]), ValueError, r"input_size has shape \(1,\)"),
    (replace("input_size", Tensor.float), TypeError, "input_size is torch.float32; allowed is float64"),
    (replace("steps", lambda x: x[:1]), ValueError, "layer 1: step_places=1 is not allowed; there are 1 steps"),
    (replace("bias_shares", lambda _: None), ValueError, "bias_shares is None"),
]


@pytest.mark.parametrize(("change", "error", "words"), DIRECT)
def test_bad_arguments_of_direct(change: Change, error: type[Exception], words: str) -> None:
    assert_refused(change, Layers.direct, error, words)


@pytest.mark.parametrize(("change", "error", "words"), FINISH)
def test_bad_arguments_of_finish(change: Change, error: type[Exception], words: str) -> None:
    assert_refused(change, Layers.finish, error, words)


def assert_refused(change: Change, call: Callable[[Layers], None], error: type[Exception], words: str) -> None:
    layers = Layers.random(SHAPES)
    change(layers)
    before = [x.clone() for x in layers.tensors()]
    with pytest.raises(error, match=words):
        call(layers)
    changed = [(x, y) for x, y in zip(layers.tensors(), before, strict=True) if not x.is_meta and not torch.equal(x, y)]
    assert not changed


def test_bad_numbers() -> None:
    layers = Layers.random(SHAPES)
    with pytest.raises(ValueError, match="precision='fp8' is not allowed; choose one of tf32, tf32x3, bf16"):
        layers.direct("fp8")
    with pytest.raises(TypeError, match="ok must be None or a bool tensor"):
        layers.direct(ok=torch.tensor(1.0))
    for rates, error, words in (
        ([0.1], ValueError, "rates has 1 entries"), ([0.1, -1.0], ValueError, "layer 1: rates=-1.0"),
        ([0.1, torch.ones(2)], ValueError, r"layer 1: rates has shape \(2,\)"),
        ([0.1, "1"], TypeError, "layer 1: rates"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            layers.finish(rates)  # type: ignore[arg-type]


def test_settings_travel_in_their_order() -> None:
    other = dataclasses.replace(SETTINGS, nesterov=False, radius=dataclasses.replace(RADIUS, least=0.5, interval=7))
    for settings in (SETTINGS, other):
        assert StepSettings.of_numbers(settings.numbers()) == settings
    rule = list(map(float, vars(other.radius).values()))
    assert other.numbers()[5:-4] == rule
    assert other.numbers()[1] == 0
