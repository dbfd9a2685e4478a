"""Both kernels of each op of the fused step against float64: the CUDA module's, simulated, and Triton's, interpreted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton_sanitizer
from cusim.fused_layers import RADIUS, SETTINGS, Layers, Shape
from cusim.simulated import cuda_kernels_on_cpu
from fused_apply_support import Model, model, params_of, stepped, thetas_of
from support import assert_close_to_reference, relative_errors
from torch import Tensor, nn
from triton.runtime.errors import InterpreterError
from triton_support import DEVICE

import lnb
import lnb_kernels as lk
from lnb_kernels import _backend, _captured
from lnb_kernels._backend import KernelUnavailable
from lnb_kernels._triton import tables
from lnb_kernels.fused_step import left_over, triton_apply, triton_direct, triton_finish, triton_kernel
from lnb_kernels.multi_tensor import triton_kernel as triton_flags
from lnb_kernels.refresh import triton_kernel as triton_refresh

# Groups; blocks that are whole packs, and some that are not; with a bias and without; several blocks each way.
SHAPES = [Shape(14, 21, 7, 7, groups=2), Shape(16, 48, 8, 16), Shape(72, 24, 72, 24, bias=False), Shape(1, 1, 1, 1)]

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu", reason="tensors of these tests are on the CPU; make gpu has the others"
)


@pytest.fixture
def triton() -> Iterator[None]:
    lk.set_backend("triton")
    with triton_sanitizer.through_tables(triton_direct, triton_finish, triton_apply, triton_refresh, triton_flags):
        yield
    lk.set_backend("auto")


@pytest.fixture(params=["cuda", "triton"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "triton":
        request.getfixturevalue("triton")
        yield "triton"
        return
    with cuda_kernels_on_cpu():
        yield "native"


def truth_and_plain(layers: Layers, kernels: str) -> tuple[Layers, Layers]:
    """What the op makes in float64, and in plain PyTorch of the layers' own dtypes."""
    truth, plain = layers.copy(torch.float64), layers.copy()
    lk.set_backend("reference")
    for each in (truth, plain):
        each.direct()
    lk.set_backend(kernels)
    return truth, plain


def assert_no_worse(found: Tensor, right: Tensor, usual: Tensor, least: float) -> None:
    assert relative_errors(found, right)[0] <= 2 * relative_errors(usual, right)[0] + least


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_directions(kernels: str, scale: float) -> None:
    layers = Layers.random(SHAPES if scale == 1 else SHAPES[:1], scale)
    truth, plain = truth_and_plain(layers, kernels)
    layers.direct("tf32x3")
    for i, shape in enumerate(layers.shapes):
        for name in ("directions", "momentum"):
            assert_close_to_reference(*(getattr(x, name)[i] for x in (layers, truth, plain)))
        for k in range(6):
            assert_no_worse(*(x.sums()[i][..., k] for x in (layers, truth, plain)), least=5e-7)
        assert shape.bias or not layers.sums()[i][..., 2].any()
    biased = torch.cat([torch.full((s.rows,), s.bias) for s in layers.shapes])
    assert_no_worse(*(x.mixed_biases[biased] for x in (layers, truth, plain)), least=3e-7)


@pytest.mark.parametrize("gradients", [torch.bfloat16, torch.float16])
def test_directions_of_16_bits(kernels: str, gradients: torch.dtype) -> None:
    """Operands of products are rounded to 8 bits, sums are not, and what goes through no product is exact."""
    layers = Layers.random(SHAPES[:2], 1.0, gradients, torch.bfloat16)
    truth, _ = truth_and_plain(layers, kernels)
    layers.direct("bf16")
    for i in range(2):
        rms = relative_errors(layers.directions[i], truth.directions[i])[1]
        assert 1e-3 <= rms <= 6e-3
        torch.testing.assert_close(layers.momentum[i].double(), truth.momentum[i], rtol=3e-7, atol=3e-7)
        torch.testing.assert_close(layers.sums()[i][..., 4:], truth.sums()[i][..., 4:], rtol=3e-6, atol=0)


def test_layers_that_the_kernel_does_not_take_go_to_the_reference(kernels: str) -> None:
    layers = Layers.random([Shape(4, 6, 2, 3), Shape(145, 2, 145, 2)])
    truth, plain = truth_and_plain(layers, kernels)
    layers.direct("tf32x3")
    for i in range(2):
        assert_close_to_reference(*(x.directions[i] for x in (layers, truth, plain)))


@pytest.mark.usefixtures("triton")
def test_layers_are_averaged_once_where_the_kernel_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes over then, for all: none may have its gradient in its average already."""
    layers = Layers.random([Shape(4, 6, 2, 3), Shape(145, 2, 145, 2)])

    def fails(*_: Any) -> None:
        raise KernelUnavailable("a test's kernel does not compile")

    monkeypatch.setattr(triton_kernel, "launch_direct", fails)
    lk.set_backend("triton")
    before = [average.clone() for average in layers.momentum]
    with pytest.raises(Exception, match="a test's kernel"):
        layers.direct()
    assert all(map(torch.equal, layers.momentum, before))


@pytest.mark.usefixtures("triton")
def test_no_launch_is_made_where_a_later_one_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles in whole packs have a launch of their own, as biases have, and others: each is compiled for itself."""
    for kernel, make in (
        (triton_direct.direct_kernel, lambda: Layers.random([Shape(16, 8, 8, 8), Shape(4, 6, 2, 3)])),
        (triton_apply.move_others_kernel, lambda: model(weights=[(9, 7), (8, 8)], biases=[9, 8], others=[(3,)])),
    ):
        compiled = []

        def warmup(
            *_: Any, compiled: list[int] = compiled, last: bool = kernel is triton_direct.direct_kernel, **__: Any
        ) -> None:
            compiled.append(0)
            if len(compiled) == 2 or not last:
                raise InterpreterError("a test's kernel does not compile")

        monkeypatch.setattr(kernel, "warmup", warmup, raising=False)
        given = make()
        written = given.momentum if isinstance(given, Layers) else given.written()
        before = [tensor.clone() for tensor in written]
        with pytest.raises(KernelUnavailable, match="does not compile"):
            given.direct() if isinstance(given, Layers) else given.step()
        assert all(map(torch.equal, written, before))


@pytest.mark.parametrize("measured", [False, True])
def test_scales_of_rows_and_layers(kernels: str, measured: bool) -> None:
    layers = Layers.random([*SHAPES, Shape(600, 2, 100, 1)])
    truth_and_plain(layers, kernels)
    lk.set_backend("reference")
    layers.direct()
    layers.norms = torch.tensor([1.0, -1.0, 2.0, -1.0, 3.0], dtype=torch.float64) if measured else None
    expected = layers.copy()
    rates = [0.1, torch.tensor(0.25), 0.0, 0.1, 0.5]
    expected.finish(rates)
    lk.set_backend(kernels)
    layers.finish(rates)
    for name, right in expected.numbers.items():
        torch.testing.assert_close(layers.numbers[name], right, rtol=3e-7 if name == "row_scales" else 1e-12, atol=0)
    for found, other in zip(
        layers.bias_directions + layers.bias_momentum, expected.bias_directions + expected.bias_momentum, strict=True
    ):
        torch.testing.assert_close(found, other, rtol=1e-6, atol=1e-7)


def recovery(coherence: float) -> float:
    """The factor by which the radius of a layer that sees no data grows below the band of noise."""
    return float(np.interp(coherence, [0.35, 0.4, 0.5, 0.6], [1.0, RADIUS.recover, RADIUS.recover, 1.0]))


# Of a layer in its opening or after it: the step, ||g~||^2 over what is expected of independent gradients, now and on average,
# and what becomes of the radius r. "Opposed" is below a quarter now.
LATER = {
    "opposed at first": (2, 0.2, 2.0, lambda r: max(RADIUS.shrink * r, min(r, RADIUS.floor))),
    "below noise at first": (2, 0.5, 0.5, lambda r: r),
    "noise at first": (2, 0.9, 0.9, lambda r: (1 + (RADIUS.grow - 1) * 0.25) * r),
    "alike at first": (RADIUS.opening, 1.3, 1.3, lambda r: RADIUS.grow * r),
    "opposed": (200, 0.2, 1.0, lambda r: max(RADIUS.shrink * r, min(r, RADIUS.floor))),
    "below noise": (200, 0.5, 0.5, lambda r: RADIUS.recover * r),
    "near what is opposed": (200, 0.37, 0.37, lambda r: recovery(0.37) * r),
    "much opposed": (200, 0.3, 0.3, lambda r: r),
    "nearer to noise": (200, 0.58, 0.58, lambda r: recovery(0.58) * r),
    "at the edge of noise": (200, 0.75, 0.75, lambda r: r),
    "noise": (200, 1.0, 1.0, lambda r: max(RADIUS.calm * r, min(RADIUS.grow * r, RADIUS.floor))),
    "above noise": (200, 1.4, 1.4, lambda r: (1 + (RADIUS.grow - 1) * 0.25) * r),
    "alike": (200, 3.0, 3.0, lambda r: RADIUS.grow * r),
}
RADII = (1.0, 0.5, 0.205, 0.2, 0.1, 1e-3)


@pytest.mark.parametrize("who", ["reference", "kernels"])
def test_radii(kernels: str, who: str) -> None:
    """The floor ends what gradients shrink; a radius below it, which a rising loss made, is not raised at once."""
    cases = [(radius, *case) for case in LATER.values() for radius in RADII]
    layers = Layers.random([Shape(2, 2, 2, 2, bias=False)] * len(cases))
    b, kept = SETTINGS.momentum, RADIUS.b_coherence
    layers.numbers["independent"].zero_()
    for i, (sums, (radius, t, ratio, mean, _)) in enumerate(zip(layers.sums(), cases, strict=True)):
        own = (b / (1 - b**t) + 1) * (1 - b)  # the weight of this step's gradient, the only one that was not zero
        sums.copy_(torch.tensor([1.0, 1.0, 0.0, 1.0, ratio * own**2, 1.0]))
        rounded = sums.flatten()[4].item() / own**2  # what is left of the ratio in float32
        layers.steps[i] = t
        layers.input_size[i] = 0  # not known
        layers.numbers["radius"][i] = radius
        layers.numbers["coherence"][i] = ((1 - kept**t) * mean - (1 - kept) * rounded) / kept
    lk.set_backend(who if who == "reference" else kernels)
    layers.finish()
    expected = torch.tensor([min(1.0, after(radius)) for radius, *_, after in cases], dtype=torch.float64)
    torch.testing.assert_close(layers.numbers["radius"], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("who", ["reference", "kernels"])
def test_radii_of_layers_that_see_data_do_not_grow_below_noise(kernels: str, who: str) -> None:
    layers = Layers.random([Shape(2, 2, 2, 2, bias=False)] * 2)
    own = 1 - SETTINGS.momentum**2  # of the gradient of a step so late
    layers.numbers["independent"].zero_()
    for sums in layers.sums():
        sums.copy_(torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5 * own**2, 1.0]))
    layers.steps.fill_(200)
    layers.numbers["radius"].fill_(0.5)
    layers.numbers["coherence"].fill_(0.5)
    layers.input_size.copy_(torch.tensor([0.0, 1e-3]))
    lk.set_backend(who if who == "reference" else kernels)
    layers.finish()
    expected = torch.tensor([RADIUS.recover * 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(layers.numbers["radius"], expected, rtol=1e-6, atol=0)


# Of a layer whose weights are measured: the sum of the squares of its relative steps, by what part of it the square of the norm
# has grown, and the steps made; whether it is found that the steps went back and forth. The least sum that tells is 0.02.
WALKS = {
    "as noise does": (0.4, 2.0, 200, False),
    "back and forth": (0.4, 1.45, 200, True),
    "shorter and back": (0.4, -1.0, 200, True),
    "towards zero": (0.4, -1.6, 200, False),
    "held by somebody": (0.4, 1e-6, 200, False),
    "too short to tell": (0.018, 1.0, 200, False),
    "long enough": (0.022, 1.0, 200, True),
    "in the first steps": (0.4, 1.0, 6, False),
    "after them": (0.4, 1.0, 7, True),
}


@pytest.mark.parametrize("who", ["reference", "kernels"])
def test_steps_that_go_back_and_forth(kernels: str, who: str) -> None:
    """The radius goes to the floor at once, and coherence begins anew with this step; layers that stand still are left."""
    cases = [(radius, *case) for case in WALKS.values() for radius in (1.0, 0.1)]
    layers = Layers.random([Shape(2, 2, 2, 2, bias=False)] * len(cases))
    b = SETTINGS.momentum
    layers.numbers["independent"].zero_()
    layers.norms = torch.empty(len(cases), dtype=torch.float64)
    expected = torch.empty(2, len(cases), dtype=torch.float64)
    for i, (sums, (radius, walked, part, t, turned)) in enumerate(zip(layers.sums(), cases, strict=True)):
        own = (b / (1 - b**t) + 1) * (1 - b)
        sums.copy_(torch.tensor([1.0, 1.0, 0.0, 1.0, 3.0 * own**2, 1.0]))
        layers.steps[i] = t
        layers.numbers["radius"][i], layers.numbers["coherence"][i] = radius, 3 * (1 - RADIUS.b_coherence**t)
        layers.numbers["weight_norm"][i], layers.numbers["growth"][i] = 2.0, walked / 2
        layers.norms[i] = 2 * (1 + part * walked) ** 0.5
        former = min(radius, RADIUS.floor) if turned else radius
        fresh = (1 - RADIUS.b_coherence) * sums.flatten()[4].item() / own**2  # what is left of three in float32
        mean = fresh / (1 - RADIUS.b_coherence**t) if turned else 3.0
        layers.input_size[i] = 0
        expected[0, i] = min(1.0, former * (recovery(mean) if mean < RADIUS.quiet else RADIUS.grow))
        expected[1, i] = fresh if turned else 3 * RADIUS.b_coherence * (1 - RADIUS.b_coherence**t) + fresh
    still = layers.copy()
    lk.set_backend(who if who == "reference" else kernels)
    layers.finish()
    torch.testing.assert_close(layers.numbers["radius"], expected[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(layers.numbers["coherence"], expected[1], rtol=1e-6, atol=0)
    still.finish([0.0] * len(cases))
    assert still.numbers["radius"].gt(RADIUS.floor * RADIUS.grow)[::2].all()


WEIGHTS = [(5, 1), (9, 7), (6, 768), (2, 8197), (1, 5000), (0, 4)]


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": WEIGHTS},
        {"param": torch.bfloat16, "y": torch.bfloat16, "masters": True},
        {"param": torch.float16, "y": torch.float16, "offset": 1},
        {"direction": torch.bfloat16, "others": [(40,)]},
    ],
)
def test_moves(kernels: str, settings: dict[str, Any]) -> None:
    small = {"weights": [(9, 7), (4, 3, 8)], "biases": [9, 6], "others": [(3,), (0,), (2, 4500)]}
    given = model(**{**small, **settings})
    truth, plain = stepped(given), given.copy()
    lk.set_backend("reference")
    plain.step()
    lk.set_backend(kernels)
    given.step()
    found, usual = (
        {"thetas": thetas_of(x), "averages": x.others.averages, "squares": x.others.squares} for x in (given, plain)
    )
    for name, rights in truth.items():
        for tensor, right, other in zip(found[name], rights, usual[name], strict=True):
            assert_close_to_reference(tensor, right, other)
    for param, theta in zip(params_of(given), thetas_of(given), strict=True):
        assert torch.equal(param, theta.to(param.dtype))


def not_ok(given: Model) -> Model:
    given.others = replace(given.others, gradients=[g * float("nan") for g in given.others.gradients])
    return replace(given, ok=torch.tensor(False))


def test_nothing_is_written_where_ok_is_false(kernels: str) -> None:
    layers, no = Layers.random(SHAPES[:1]), torch.tensor(False)
    before = layers.copy()
    layers.direct(ok=no)
    layers.finish(ok=no)
    assert all(torch.equal(*pair) for pair in zip(layers.tensors(), before.tensors(), strict=True))
    given = not_ok(model(weights=[(3, 4)], biases=[3], others=[(5,)]))
    old = [tensor.clone() for tensor in given.written()]
    given.step()
    assert all(torch.equal(*pair) for pair in zip(given.written(), old, strict=True))


def test_what_is_not_finite_stays_where_it_is(kernels: str) -> None:
    layers = Layers.random([Shape(12, 20, 6, 10)])
    layers.gradients[0][0, 7, 3] = float("nan")
    layers.direct()
    finite = layers.directions[0].isfinite()
    assert finite[0, :6].all()
    assert finite[0, 6:, 10:].all()
    assert not finite[0, 6:, :10].any()
    given = model(weights=[(4, 6)], biases=[], others=[(40,), (40,)])
    given.weights.directions[0][2].fill_(float("nan"))
    given.weights.row_scales[0][2] = 0
    given.others.squares[0][3] = float("nan")
    given.step()
    assert all(bool(weight.isfinite().all()) for weight in params_of(given))
    assert given.others.finite is not None
    assert given.others.finite.tolist() == [False, True]


def test_tables_are_copied_once_and_written_by_kernels_into_graphs(
    triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (*range(7), -(2**62), 2**62, 5, *range(30))
    kept = tables.on_device(numbers, torch.device("cpu"))
    assert tables.on_device(numbers, torch.device("cpu")) is kept
    monkeypatch.setattr(_captured, "is_capturing", lambda: True)
    monkeypatch.setattr(tables, "is_capturing", lambda: True)
    written = tables.on_device(numbers, torch.device("cpu"))
    assert written[: len(numbers)].tolist() == list(numbers) == kept.tolist()


def test_larger_blocks_than_the_cuda_module_takes_go_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions and refreshes of a layer with 149 inputs, a prime, beside one that the module takes."""

    def fails(*_: Any) -> None:
        raise AssertionError("this is for what no kernel takes")

    monkeypatch.setattr(_backend, "serves_beside", lambda *_: lk.get_backend() == "native")
    monkeypatch.setattr(left_over, "direct_layer_", fails)
    monkeypatch.setattr("lnb.statistics.refresh._Refresh.begin", fails)
    found = []
    for simulated in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(149, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))
        x, y = torch.randn(300, 149), torch.randn(300, 2)
        optimizer = lnb.LNB(net, lr=0.05, products="tf32x3")
        nn.functional.mse_loss(net(x), y).backward()
        if simulated:
            with cuda_kernels_on_cpu(), triton_sanitizer.through_tables(triton_direct, triton_refresh):
                optimizer.step()
        else:
            monkeypatch.undo()
            optimizer.step()
        found.append([parameter.detach() for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 1e-3 * float(other.abs().max())


def test_whole_steps_by_triton_are_those_of_the_cpu(triton: None) -> None:
    found = []
    for backend in ("triton", "auto"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.LayerNorm(10), nn.Linear(10, 12, bias=False), nn.Tanh(),
                            nn.Linear(12, 2))  # fmt: skip
        x, y = torch.randn(24, 6), torch.randn(24, 2)
        optimizer = lnb.LNB(net, lr=0.05, block_size=6, weight_decay=0.1, products="tf32x3", refresh_every=2)
        for _ in range(3):
            lk.set_backend("auto")
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            lk.set_backend(backend)
            optimizer.step()
        found.append([parameter.detach() for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 5e-3 * float(other.abs().max())
