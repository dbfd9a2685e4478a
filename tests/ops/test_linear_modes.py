"""``lk.linear`` and ``lk.conv2d`` where PyTorch runs a model in another way than forward, then backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import lnb_kernels as lk


class Layer(nn.Module):
    """A layer with a moment probe; ``kind`` is ``"linear"`` or ``"conv2d"``. Twelve features in, three out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(3, 12) if kind == "linear" else torch.randn(3, 3, 2, 2))
        self.bias = nn.Parameter(torch.randn(3))
        shape = (13, 13) if kind == "linear" else (1, 13, 13)
        self.probe = torch.zeros(()).expand(shape).requires_grad_()
        self.uses = 0

    def inputs(self) -> torch.Tensor:
        return torch.randn(6, 12) if self.kind == "linear" else torch.randn(2, 3, 5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.uses += 1
        if self.kind == "linear":
            return lk.linear(x, self.weight, self.bias, self.probe)
        return lk.conv2d(x, self.weight, self.bias, padding=1, probe=self.probe)

    def moment(self, x: torch.Tensor) -> torch.Tensor:
        """What the probe's gradient must be."""
        return lk.second_moment(x) if self.kind == "linear" else lk.conv2d_second_moment(x, 2, padding=1)


@pytest.fixture(params=["linear", "conv2d"])
def layer(request: pytest.FixtureRequest) -> Layer:
    return Layer(request.param)


def gradients(layer: Layer) -> list[torch.Tensor]:
    found = [layer.probe.grad, layer.weight.grad, layer.bias.grad]
    layer.probe.grad = layer.weight.grad = layer.bias.grad = None
    assert all(value is not None for value in found)
    return [value for value in found if value is not None]


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_once(layer: Layer, reentrant: bool) -> None:
    x = layer.inputs().requires_grad_()
    layer(x).square().sum().backward()
    plain = gradients(layer)
    layer.uses = 0
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert layer.uses == 2, "the layer was not recomputed"
    for one, other in zip(plain, gradients(layer), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_sees_the_cast_input_and_no_loss_scale(layer: Layer, dtype: torch.dtype) -> None:
    x = layer.inputs().requires_grad_()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=dtype == torch.float16)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        assert y.dtype == dtype
        layer.probe.requires_grad_(False)
        plain = layer(x)
        layer.probe.requires_grad_(True)
    assert torch.equal(y, plain)
    scaler.scale(y.float().sum()).backward()
    ours = [x.grad, *gradients(layer)[1:]]
    x.grad = None
    scaler.scale(plain.float().sum()).backward()
    for one, other in zip(ours, (x.grad, layer.weight.grad, layer.bias.grad), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.usefixtures("both_backends")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_leaves_the_statistics_in_float32(layer: Layer, dtype: torch.dtype, backward_inside: bool) -> None:
    x = layer.inputs()
    with torch.autocast("cpu", dtype=dtype):
        loss = layer(x).float().sum()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    s = gradients(layer)[0]
    assert s.dtype == torch.float32
    assert torch.equal(s, layer.moment(x.to(dtype)))


def test_float64_is_not_cast_by_autocast() -> None:
    x, weight, p = torch.randn(5, 4).double(), torch.randn(3, 4).double(), torch.zeros(5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lk.linear(x, weight, None, p).dtype == torch.float64


@pytest.mark.parametrize("live", [True, False])
def test_compiles_to_one_graph(layer: Layer, live: bool) -> None:
    layer.probe.requires_grad_(live)
    other = layer.inputs()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return layer(torch.tanh(x)).square().sum() + layer(other).sin().sum()

    x = layer.inputs().requires_grad_()
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(loss, fullgraph=True, backend="aot_eager")
    loss(x).backward()
    expected = [x.grad, layer.probe.grad, layer.weight.grad, layer.bias.grad]
    x.grad = layer.probe.grad = layer.weight.grad = layer.bias.grad = None
    compiled(x).backward()
    for one, other_grad in zip(expected, (x.grad, layer.probe.grad, layer.weight.grad, layer.bias.grad), strict=True):
        if one is None:
            assert not live
            assert other_grad is None
        else:
            assert other_grad is not None
            torch.testing.assert_close(other_grad, one)


def test_compiles_under_autocast(layer: Layer) -> None:
    x = layer.inputs()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x).float().sum()

    forward(x).backward()
    torch.testing.assert_close(gradients(layer)[0], layer.moment(x.bfloat16()))


@pytest.mark.slow
def test_inductor_agrees(layer: Layer) -> None:
    x = layer.inputs()
    torch.compile(lambda x: layer(x).square().sum(), fullgraph=True)(x).backward()
    found = gradients(layer)
    layer(x).square().sum().backward()
    for one, other in zip(found, gradients(layer), strict=True):
        torch.testing.assert_close(one, other)


def test_functional_call_and_func_grad(layer: Layer) -> None:
    x = layer.inputs()
    replaced = {"weight": torch.randn_like(layer.weight, requires_grad=True), "bias": torch.randn(3)}
    functional_call(layer, replaced, (x,)).sum().backward()
    assert layer.probe.grad is not None
    assert torch.equal(layer.probe.grad, layer.moment(x))
    assert replaced["weight"].grad is not None
    assert layer.weight.grad is None

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    live = grad(loss)(replaced)
    layer.probe.requires_grad_(False)
    for name, value in grad(loss)(replaced).items():
        torch.testing.assert_close(live[name], value)


def test_func_grad_of_the_probe_is_the_moment(layer: Layer) -> None:
    x = layer.inputs()

    def loss(probe: torch.Tensor) -> torch.Tensor:
        if layer.kind == "linear":
            return lk.linear(x, layer.weight.detach(), None, probe).sum()
        return lk.conv2d(x, layer.weight.detach(), padding=1, probe=probe).sum()

    torch.testing.assert_close(grad(loss)(torch.zeros(layer.probe.shape)), layer.moment(x))


def test_no_grad_and_inference_mode_leave_the_probe_alone(layer: Layer) -> None:
    x = layer.inputs()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not layer(x).requires_grad
    assert layer.probe.grad is None


def test_a_frozen_layer_still_measures(layer: Layer) -> None:
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    x = layer.inputs()
    layer(x).sum().backward()
    assert layer.probe.grad is not None
    assert torch.equal(layer.probe.grad, layer.moment(x))


def test_an_input_changed_in_place_is_an_error(layer: Layer) -> None:
    """Never a silent moment of other values than the layer multiplied."""
    x = layer.inputs()
    y = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
