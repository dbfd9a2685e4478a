"""``nn.Conv1d``: the passes of the original bit for bit, the second moments of its patches, and the steps of a 2-d twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import MODES, equal_parameters, same, snapshot
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lnb
import lnb_kernels as lk

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 1},
    {"kernel_size": 3, "stride": 2, "padding": 2},
    {"kernel_size": 2, "dilation": 3, "padding": 1},
    {"kernel_size": 3, "groups": 2, "padding": "same"},
    {"kernel_size": 4, "padding": "same", "bias": False},
    {"kernel_size": 5, "groups": 4, "padding": 2, "stride": 3},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "groups": 2},
    {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
]


def patches(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """The rows of ``conv``, ``[groups, N, d_in]``, one output position after another."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    (kernel,), (stride,), (dilation,) = conv.kernel_size, conv.stride, conv.dilation
    reach = dilation * (kernel - 1) + 1
    starts = range(0, padded.shape[-1] - reach + 1, stride)
    rows = torch.stack([padded[..., i : i + reach : dilation] for i in starts], dim=1)  # [n, positions, C, k]
    return rows.flatten(0, 1).unflatten(1, (conv.groups, -1)).movedim(1, 0).flatten(2)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_passes_and_second_moment(options: dict[str, Any], layout: str) -> None:
    plain = nn.Conv1d(4, 8, **options)
    conv = copy.deepcopy(plain)
    optimizer = lnb.LNB(conv, preset="paper")
    x = torch.randn(3, 4, 11) if layout == "contiguous" else torch.randn(3, 11, 4).mT
    found = []
    for module in (plain, conv):
        leaf = x.detach().requires_grad_()
        y = module(leaf)
        (y.square().sum() + y.sum()).backward()
        found.append([y.detach(), leaf.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    rows = patches(conv, x.double())
    expected = torch.stack([lk.second_moment(group) for group in rows])
    capture = optimizer._inventory.layers[0].captures[0]
    torch.testing.assert_close(capture.moments.squeeze(1).double(), expected, rtol=1e-5, atol=1e-4)
    optimizer.step()


def lifted(name: str, value: Any) -> Any:
    """An option of a 1-d convolution as that of a 2-d one of height 1."""
    axes = {"kernel_size": 1, "stride": 1, "dilation": 1, "padding": 0}
    return value if isinstance(value, str) or name not in axes else (axes[name], value)


@pytest.mark.parametrize("mode", ["paper", "matrix-free", "fast"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_steps_are_those_of_a_convolution_of_height_one(options: dict[str, Any], mode: str) -> None:
    torch.manual_seed(2)
    conv = nn.Conv1d(4, 8, dtype=torch.float64, **options)
    twin = nn.Conv2d(4, 8, dtype=torch.float64, **{name: lifted(name, value) for name, value in options.items()})
    with torch.no_grad():
        for p, q in zip(twin.parameters(), conv.parameters(), strict=True):
            p.copy_(q.view_as(p))
    optimizers = [lnb.LNB(module, **MODES[mode]) for module in (conv, twin)]
    for seed in range(4):
        x = torch.randn(3, 4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for module, optimizer, input in zip((conv, twin), optimizers, (x, x.unsqueeze(-2)), strict=True):
            optimizer.zero_grad()
            module(input).sin().square().mean().backward()
            optimizer.step()
    for p, q in zip(twin.parameters(), conv.parameters(), strict=True):
        torch.testing.assert_close(p.view_as(q), q, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", ["matrix_free", "dual"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_solvers_on_kept_inputs_solve_the_metric(options: dict[str, Any], solver: str) -> None:
    torch.manual_seed(4)
    start = nn.Conv1d(4, 8, dtype=torch.float64, **options)
    x = torch.randn(3, 4, 11, dtype=torch.float64)
    conv = copy.deepcopy(start)
    optimizer = lnb.LNB(conv, 0.1, "paper", solver=solver, cg_iterations=80, ridge=0.5, trust_region="layer")
    conv(x).sin().square().mean().backward()
    rows = patches(conv, x)
    if conv.bias is not None:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)
    metric = rows.mT @ rows / rows.shape[1]
    metric.diagonal(dim1=-2, dim2=-1)[:, : conv.weight[0].numel()] += 0.5
    gradient = conv.weight.grad.view(conv.groups, 8 // conv.groups, -1)
    if conv.bias is not None:
        gradient = torch.cat([gradient, conv.bias.grad.view(conv.groups, -1, 1)], dim=-1)
    h = torch.linalg.solve(metric, gradient.mT).mT
    scale = (h * gradient).sum().sqrt().clamp(min=optimizer.config.min_norm)
    moved = h[..., : conv.weight[0].numel()].reshape(conv.weight.shape) / scale
    optimizer.step()
    decayed = start.weight * (1 - 0.1 * optimizer.config.weight_decay)
    torch.testing.assert_close(conv.weight, decayed - 0.1 * moved, rtol=1e-4, atol=1e-6)


def signals() -> nn.Sequential:
    """Two 1-d convolutions, each with an activation that writes in place, and a linear layer."""
    torch.manual_seed(8)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv1d(4, 4, 3, stride=2, padding=1, padding_mode="circular", groups=2, bias=False),
        nn.LeakyReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def fit(model: nn.Module, optimizer: lnb.LNB, forward: Callable[[Tensor], Tensor], steps: int = 4) -> Tensor:
    loss = torch.zeros(())
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.randn(8, 2, 8, generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x).float(), (x[:, 0, 0] > 0).long())
        loss.backward()
        optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("mode", MODES)
def test_coverage_and_training(mode: str) -> None:
    model = signals()
    optimizer = lnb.LNB(model, **MODES[mode])
    coverage = optimizer.coverage()
    assert {row.metric for row in coverage} == {"second moment"}
    assert coverage["0.weight"].reason == "convolution '0': 6 inputs and the bias"
    assert coverage["2.weight"].reason == "convolution '2': 2 groups of 6 inputs"
    first = fit(model, optimizer, model, 1)
    assert fit(model, optimizer, model, 30) < first
    assert optimizer.diagnostics() == {"steps": 31, "skipped_steps": 0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(mode: str, reentrant: bool) -> None:
    a, b = signals(), signals()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (a, b)]
    fit(a, optimizers[0], lambda x: a(x.clone().requires_grad_()))  # with gradients, it is no data
    fit(b, optimizers[1], lambda x: checkpoint(b, x.clone().requires_grad_(), use_reentrant=reentrant))
    assert equal_parameters(a, b)


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_compile(mode: str) -> None:
    torch._dynamo.reset()
    a, b = signals(), signals()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (a, b)]
    fit(a, optimizers[0], a)
    fit(b, optimizers[1], torch.compile(b, backend="aot_eager", fullgraph=True))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_autocast(mode: str) -> None:
    plain = signals()
    model = copy.deepcopy(plain)
    optimizer = lnb.LNB(model, **MODES[mode])
    x = torch.randn(8, 2, 8)
    for module in (plain, model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(x).square().mean()
        loss.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), model.parameters(), strict=True))
    optimizer.step()
    assert optimizer.diagnostics() == {"steps": 1, "skipped_steps": 0}


@pytest.mark.parametrize("mode", MODES)
def test_accumulation_and_a_layer_used_twice(mode: str) -> None:
    """Two micro-batches, or two uses, make the step of one batch of both."""
    x = torch.randn(2, 6, 4, 9, dtype=torch.float64)
    steps = []
    for how in ("together", "micro-batches", "uses"):
        torch.manual_seed(3)
        conv = nn.Conv1d(4, 5, 3, padding=1, dtype=torch.float64)
        optimizer = lnb.LNB(conv, **MODES[mode])
        if how == "together":
            conv(x.flatten(0, 1)).sin().sum().backward()
        elif how == "micro-batches":
            for half in x:
                conv(half).sin().sum().backward()
        else:
            (conv(x[0]).sin().sum() + conv(x[1]).sin().sum()).backward()
        optimizer.step()
        steps.append(conv.weight.detach())
    for other in steps[1:]:
        torch.testing.assert_close(other, steps[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_copies_and_resumption(mode: str) -> None:
    model = signals()
    optimizer = lnb.LNB(model, **MODES[mode])
    fit(model, optimizer, model)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    resumed = signals()
    resumed.load_state_dict(model.state_dict())
    resumed_optimizer = lnb.LNB(resumed, **MODES[mode])
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (twin, twin_optimizer), (resumed, resumed_optimizer)):
        fit(m, o, m)
    assert same(snapshot(model, optimizer), snapshot(twin, twin_optimizer))
    assert same(snapshot(model, optimizer), snapshot(resumed, resumed_optimizer))


def test_shared_weights_need_one_geometry() -> None:
    model = nn.ModuleList([nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3, padding=1), nn.Linear(2, 2)])
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    assert lnb.LNB(model).coverage()["0.weight"].reason == "shared by convolutions of different geometry"
    model[1].padding = (0,)
    optimizer = lnb.LNB(lnb.detach(model), preset="paper")
    x = torch.randn(3, 2, 6)
    (model[0](x) + model[1](x)).sum().backward()
    assert optimizer._inventory.layers[0].captures[0].moments[0, 0, -1, -1] == 12
    optimizer.step()


class OwnConvForward(nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


def test_a_subclass_with_its_own_convolution_is_left_alone() -> None:
    model = nn.ModuleList([OwnConvForward(2, 2, 3), nn.Linear(2, 2)])
    assert "OwnConvForward has its own _conv_forward" in lnb.LNB(model).coverage()["0.weight"].reason
