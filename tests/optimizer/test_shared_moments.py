"""Layers that are given one tensor gather one second moment: fewer products, and the steps of layers that gather alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import MODES, equal_parameters
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lnb
from lnb.layers import linear
from lnb_kernels.linear import SharedMoment

WIDTH = 6


class Products(TorchDispatchMode):
    """Counts the second moments that backward passes of linear layers compute."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) == "lnb_kernels.linear_backward.default":
            self.count += args[3][3]
        return func(*args, **(kwargs or {}))


class Model(nn.Module):
    """Projections of one input, then a gated MLP: 4 inputs of 7 linear layers.

    Attributes:
        uses: the ways in which the projections take part, in place of the plain one.
    """

    def __init__(self, uses: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(11)
        self.first = nn.Linear(4, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=i > 0) for i in range(3))
        self.gate, self.up, self.down = nn.Linear(WIDTH, 9), nn.Linear(WIDTH, 9), nn.Linear(9, 3)
        self.uses = uses

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.body(x)

    def body(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.uses == "first unused":
            q = q.detach().square()
        elif self.uses == "last unused":
            v = torch.ones_like(v)
        elif self.uses == "twice":
            q = q + self.q(x) * self.k(x)
        elif self.uses == "no_grad":
            with torch.no_grad():
                constant = self.v(x)
            v = v + constant
        x = x.clone() + F.softmax(q * k, -1) * v
        return self.down(F.silu(self.gate(x)) * self.up(x))


def batch(seed: int, rows: int = 10) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def fit(model: Model, optimizer: lnb.LNB, forward: Callable[[Tensor], Tensor], steps: int = 3, parts: int = 1) -> int:
    """Train, and count the second moments."""
    with Products() as products:
        for step in range(steps):
            optimizer.zero_grad()
            for part in range(parts):
                forward(batch(10 * step + part)).sin().square().mean().backward()
            optimizer.step()
    return products.count


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every layer gather its own moment."""
    monkeypatch.setattr(linear, "moment_of", lambda *arguments: None)


def compared(
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    make: Callable[[], Model] = Model,
    wrap: Callable[[Model], Callable[[Tensor], Tensor]] = lambda model: model,
    **options: Any,
) -> tuple[int, int]:
    """Train with shared and with unshared moments, require equal parameters, and return the counts."""
    found = []
    models = make(), make()
    for model in models:
        optimizer = lnb.LNB(model, **MODES[mode])
        found.append(fit(model, optimizer, wrap(model), **options))
        alone(monkeypatch)
    assert equal_parameters(*models)
    return found[0], found[1]


GATHERS = [mode for mode in MODES if mode != "matrix-free"]


@pytest.mark.parametrize("parts", [1, 3], ids=["one batch", "accumulated"])
@pytest.mark.parametrize("mode", GATHERS)
def test_steps_are_equal_and_products_fewer(mode: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, unshared = compared(monkeypatch, mode, parts=parts)
    assert unshared > 0
    assert shared * 7 == unshared * 4


@pytest.mark.parametrize("mode", ["paper", "fast"])
@pytest.mark.parametrize(
    ("uses", "shared", "unshared"),
    [("first unused", 4, 6), ("last unused", 4, 6), ("twice", 4, 9), ("no_grad", 4, 7)],
)
def test_uses_of_the_layers(uses: str, shared: int, unshared: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = compared(monkeypatch, mode, lambda: Model(uses), steps=1)
    assert counts == (shared, unshared)


@pytest.mark.parametrize("frozen", ["q.weight", "k.weight", "v.weight", "q", "gate.weight", "up", "k.bias", "first"])
def test_frozen_siblings(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Model:
        model = Model()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        return model

    shared, unshared = compared(monkeypatch, "fast", make)
    assert shared < unshared


@pytest.mark.parametrize("mode", ["paper", "fast"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(model: Model) -> Callable[[Tensor], Tensor]:
        def body(x: Tensor) -> Tensor:
            return checkpoint(model.body, x, use_reentrant=reentrant)

        return lambda x: body(torch.tanh(model.first(x)))

    shared, unshared = compared(monkeypatch, mode, wrap=wrap)
    assert shared * 7 == unshared * 4


def test_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(model: Model) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)

        return forward

    shared, unshared = compared(monkeypatch, "fast", wrap=wrap)
    assert shared * 7 == unshared * 4


def test_one_input_inside_and_outside_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two layers multiply different numbers: each has a moment of its own."""

    def wrap(model: Model) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            x = model.first(x)
            with torch.autocast("cpu", torch.bfloat16):
                q = model.q(x)
            return model.k(x) * q.float()

        return forward

    assert compared(monkeypatch, "fast", wrap=wrap, steps=1) == (3, 3)


def test_evaluation_between_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(model: Model) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            y = model(x)
            with torch.no_grad():
                model.eval()(x)
            with torch.inference_mode():
                model(batch(5))
            model.train()
            return y

        return forward

    shared, unshared = compared(monkeypatch, "fast", wrap=wrap)
    assert shared * 7 == unshared * 4


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("create_graph", [True, False])
def test_two_backward_passes_through_one_graph(create_graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = []
    for unshared in (False, True):
        if unshared:
            alone(monkeypatch)
        model = Model()
        optimizer = lnb.LNB(model, preset="paper")
        y = model(batch(1))
        y.square().mean().backward(retain_graph=True, create_graph=create_graph)
        if (
            create_graph and not unshared
        ):  # a moment with a graph of its own is given to nobody else: it would keep itself alive
            assert y.grad_fn.shared._moment is None
        (model.q.weight.grad.square().sum() if create_graph else y.sum()).backward()
        moments.append([block.captures[0].moments.detach().clone() for block in optimizer._inventory.layers])
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_backward_passes_that_reach_one_layer_each(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])
    optimizer = lnb.LNB(layers, preset="paper")
    x = batch(3)
    outputs = [layer(x) for layer in layers]
    with Products() as products:
        for i in (first, (first + 1) % 3, first):
            outputs[i].sum().backward(retain_graph=True)
    captures = [block.captures[0] for block in optimizer._inventory.layers]
    rows = torch.cat([x, torch.ones(10, 1)], dim=1)
    torch.testing.assert_close(captures[first].moments[0, 0], 2 * rows.T @ rows)
    torch.testing.assert_close(captures[(first + 1) % 3].moments[0, 0], rows.T @ rows)
    assert captures[(first + 2) % 3].moments is None
    assert products.count == 2


def test_one_tensor_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full batches: the same object in every forward pass, with gradients and without."""
    x = batch(2)
    shared, unshared = compared(monkeypatch, "gain", wrap=lambda model: lambda _: model(x), steps=4)
    assert shared * 7 == unshared * 4


@pytest.mark.parametrize(
    "settings", [{"sample_every": 3}, {"block_size": 2}, {"moment_dtype": torch.bfloat16}], ids=str
)
def test_settings_of_the_moment(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    models = Model(), Model()
    counts = []
    for model in models:
        counts.append(fit(model, lnb.LNB(model, **settings), model, steps=3))
        alone(monkeypatch)
    assert equal_parameters(*models)
    assert counts[0] < counts[1]


def test_layers_of_two_optimizers_share_only_what_they_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x = batch(4)
    found = []
    for other in ({}, {"sample_every": 2}):
        layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
        optimizers = [lnb.LNB(layers[0]), lnb.LNB(layers[1], **other)]
        with Products() as products:
            (layers[0](x) + layers[1](x)).sum().backward()
        found.append(products.count)
        for optimizer in optimizers:
            optimizer.step()
    assert found == [1, 2]


def test_attention_with_separate_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of one tensor, of a width other than the queries'."""
    counts, weights = [], []
    for _ in range(2):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        optimizer = lnb.LNB(attention, preset="paper")
        x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
        with Products() as products:
            attention(x, memory, memory)[0].square().mean().backward()
        optimizer.step()
        counts.append(products.count)
        weights.append([p.detach() for p in attention.parameters()])
        alone(monkeypatch)
    assert counts == [3, 4]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_an_input_written_between_two_layers_is_an_error() -> None:
    layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
    lnb.LNB(layers, preset="paper")
    x = batch(7)
    first = layers[0](x)
    x.add_(1)
    second = layers[1](x)
    second.sum().backward()  # is given the new values
    rows = torch.cat([x, torch.ones(10, 1)], dim=1)
    torch.testing.assert_close(layers[1]._lnb_captures["weight"].moments[0, 0], rows.T @ rows)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()


def test_compiled_code_gathers_alone() -> None:
    torch._dynamo.reset()
    models = Model(), Model()
    for model, run in zip(
        models, (models[0], torch.compile(models[1], backend="aot_eager", fullgraph=True)), strict=True
    ):
        optimizer = lnb.LNB(model, preset="paper")
        for step in range(3):
            optimizer.zero_grad()
            run(batch(step)).sin().square().mean().backward()
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_a_moment_with_a_graph_is_not_kept() -> None:
    """The graph of a backward pass holds that of the forward pass, which would hold the moment: memory that is never freed."""
    layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
    lnb.LNB(layers, preset="paper")
    x = batch(6)
    outputs = [layer(x) for layer in layers]
    outputs[0].square().sum().backward(create_graph=True)
    assert outputs[0].grad_fn.shared is outputs[1].grad_fn.shared
    assert outputs[0].grad_fn.shared._moment is None


def test_nothing_outlives_the_graph() -> None:
    """A member that no backward pass reaches keeps the moment no longer than its own graph lives."""
    layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
    lnb.LNB(layers, preset="paper")
    x = batch(6)
    outputs = [layer(x) for layer in layers]
    moment = weakref.ref(outputs[0].grad_fn.shared)
    assert moment() is outputs[1].grad_fn.shared
    outputs[0].sum().backward()
    assert moment()._moment is not None
    del outputs
    gc.collect()
    assert moment() is None


def test_members_of_a_moment() -> None:
    shared = SharedMoment()
    a, b = shared.join(), shared.join()
    value = torch.ones(2, 2)
    assert shared.is_open
    assert shared.take(a) is None
    shared.offer(a, value)
    assert not shared.is_open
    assert shared.take(a) is None
    assert shared.take(b) is value
    assert shared._moment is None  # all were served
    assert shared.take(b) is None


def test_gradients_of_probes_are_one_memory_until_something_is_added() -> None:
    """The second time only ``q`` and ``k`` see the input: what is added to them, once, must not reach ``v``."""
    model = Model()
    optimizer = lnb.LNB(model)
    layers = (model.q, model.k, model.v)
    captures = [layer._lnb_captures["weight"] for layer in layers]

    def gathered() -> list[Tensor]:
        return [capture.moments for capture in captures if capture.moments is not None]

    model(batch(1)).sum().backward()
    first = [moment.clone() for moment in gathered()]
    assert len({moment.data_ptr() for moment in gathered()}) == 1
    model.uses = "last unused"
    model(batch(2)).sum().backward()
    assert gathered()[0].data_ptr() == gathered()[1].data_ptr() != gathered()[2].data_ptr()
    second = [moment - former for moment, former in zip(gathered(), first, strict=True)]
    assert torch.equal(gathered()[2], first[2])
    assert all(moment[0, 0, -1, -1] == 10 for moment in second[:2])
    optimizer.zero_grad()
    model.uses = "plain"
    model(batch(3)).sum().backward()
    assert len({moment.data_ptr() for moment in gathered()}) == 1
