"""The default preset: refresh schedule, averaged statistics, Adam for other parameters, exact resumption."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lnb
import lnb_kernels as lk
from lnb.statistics.schedule import is_refresh_step


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 3),
    )


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(32, 2, 4, 4, generator=generator), torch.randint(0, 3, (32,), generator=generator))
        for _ in range(count)
    ]


def train(net: nn.Module, optimizer: lnb.LNB, data: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    loss = torch.zeros(())
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_refresh_steps() -> None:
    assert [i for i in range(41) if is_refresh_step(i, 10)] == [0, 1, 2, 4, 8, 10, 20, 30, 40]
    assert all(is_refresh_step(i, 1) for i in range(5))


def test_only_the_blocks_of_the_factor_are_gathered() -> None:
    net = nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.Flatten(), nn.Linear(24, 12))
    optimizer = lnb.LNB(net, block_size=36)
    seen = {}
    for name, layer in (("conv", net[0]), ("linear", net[2])):
        layer.register_forward_hook(lambda module, args, out, name=name: seen.update({name: args[0].detach()}))
    net(torch.randn(5, 8, 4, 4)).square().sum().backward()
    gathered = [block.captures[0].moments for block in optimizer._inventory.layers]
    torch.testing.assert_close(gathered[0], lk.conv2d_second_moment(seen["conv"], 3, groups=2).unsqueeze(0))
    torch.testing.assert_close(gathered[1], lk.second_moment(seen["linear"], blocks=1).unsqueeze(0))
    optimizer.step()
    for layer in (net[0], net[2]):
        state = optimizer.state[layer.weight]
        assert state["second_moment"].shape[1] == state["factor"].shape[1]


def test_other_blocks_start_statistics_anew() -> None:
    """As where a budget cuts blocks after the first step, or a state was saved with another ``block_size``."""
    net, again = nn.Linear(8, 6), nn.Linear(8, 6)
    optimizer, coarse = lnb.LNB(net, block_size=4), lnb.LNB(again, block_size=8)
    data = [(torch.randn(32, 8), torch.randint(0, 6, (32,))) for _ in range(6)]
    train(net, optimizer, data[:5])
    coarse.load_state_dict(optimizer.state_dict())
    again.load_state_dict(net.state_dict())
    assert not is_refresh_step(5, 10)
    train(again, coarse, data[5:])  # gathers at once: the factor is in other blocks
    state = coarse.state[again.weight]
    assert state["second_moment"].shape == (1, 1, 9, 9)
    assert state["second_moment_step"] == 1
    expected = lk.second_moment(data[5][0], blocks=1) / 32
    torch.testing.assert_close(state["second_moment"][0] / (1 - 0.9), expected)
    assert (state["factor"].shape, state["output_factor"].shape) == ((1, 1, 8, 8), (1, 1, 6, 6))


def test_second_moments_are_gathered_on_refresh_steps_only() -> None:
    net = model()
    optimizer = lnb.LNB(net, refresh_every=4)
    on = []
    for data in batches(9):
        on.append(optimizer._inventory.layers[1].captures[0].moments_on)
        train(net, optimizer, [data])
    assert on == [True, True, True, False, True, False, False, False, True]


def test_without_averaging_cholesky_and_converged_pcg_agree() -> None:
    """Both solve the same system; CG does so after as many iterations as the matrix has columns."""
    data = batches(6)
    results = []
    for solver, iterations in (("cholesky", 2), ("pcg", 200)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        optimizer = lnb.LNB(net, 0.1, "paper", solver=solver, cg_iterations=iterations)
        train(net, optimizer, [(x.double(), y) for x, y in data])
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trust_region", ["two_sided", "neuron", "spectral", "layer", "global", "rms"])
def test_it_learns(trust_region: str) -> None:
    torch.manual_seed(0)
    net = model()
    data = batches(1) * 40
    first = train(net, lnb.LNB(net, 0.0), data[:1])
    assert train(net, lnb.LNB(net, 0.02, trust_region=trust_region), data) < 0.5 * first


@pytest.mark.parametrize("steps_before", [1, 3, 7])
def test_resume_is_bit_identical(steps_before: int) -> None:
    data = batches(14)
    torch.manual_seed(0)
    whole = model()
    optimizer = lnb.LNB(whole, refresh_every=5)
    train(whole, optimizer, data[:steps_before])
    buffer = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(whole, optimizer, data[steps_before:])

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = model()
    resumed.load_state_dict(saved["model"])
    second = lnb.LNB(resumed, refresh_every=5)
    second.load_state_dict(saved["optimizer"])
    train(resumed, second, data[steps_before:])
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_parameters_follow_adam() -> None:
    """LayerNorm's parameters take the steps of ``torch.optim.Adam`` fed with the same gradients."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)).double()
    twin = copy.deepcopy(net[1])
    optimizer = lnb.LNB(net, 0.01, others_lr=0.5, b_others=0.97, momentum=0.8, nesterov=False)
    adam = torch.optim.Adam(twin.parameters(), lr=0.005, betas=(0.8, 0.97), eps=1e-8)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(7, 5, dtype=torch.float64)).pow(3).sum().backward()
        for parameter, other in zip(net[1].parameters(), twin.parameters(), strict=True):
            other.grad = parameter.grad.clone()
        optimizer.step()
        adam.step()
    for parameter, other in zip(net[1].parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter, other, rtol=1e-12, atol=1e-14)


def test_nesterov_looks_ahead() -> None:
    """With an identity metric the first step follows ``b g + (1 - b) g = g``, and the second ``b m2 + (1 - b) g2``."""
    layer = nn.Linear(3, 2, bias=False).double()
    optimizer = lnb.LNB(
        layer, 1.0, "paper", exclude=[], nesterov=True, momentum=0.5, solver="cholesky", ridge=1e9, min_norm=1e-30
    )
    start = layer.weight.detach().clone()
    gradients = [torch.randn(2, 3, dtype=torch.float64) for _ in range(2)]
    steps = []
    for g in gradients:
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        (layer(torch.eye(3, dtype=torch.float64)).mT * g).sum().backward()
        optimizer.step()
        steps.append(before - layer.weight.detach())
    average = (0.5 * 0.5 * gradients[0] + 0.5 * gradients[1]) / 0.75
    wanted = 0.5 * average + 0.5 * gradients[1]
    cosine = F.cosine_similarity((steps[1] - 1e-4 * (start - steps[0])).flatten(), wanted.flatten(), dim=0)
    assert cosine > 1 - 1e-6


def test_a_refresh_without_rows_keeps_the_factor() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    optimizer = lnb.LNB(net, refresh_every=1)
    net(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[net[0].weight].items()}
    optimizer.zero_grad()
    net(torch.zeros(0, 4)).sum().backward()
    optimizer.step()
    after = optimizer.state[net[0].weight]
    assert torch.equal(before["second_moment"], after["second_moment"])
    assert torch.allclose(before["factor"], after["factor"])
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("ridge_mode", ["absolute", "relative"])
@pytest.mark.parametrize(("refresh_every", "b_s"), [(3, 0.0), (1, 0.5), (3, 0.5)])
def test_remembered_moments_serve_cholesky_and_converged_pcg_alike(
    ridge_mode: str, refresh_every: int, b_s: float
) -> None:
    results = []
    for solver, iterations in (("cholesky", 2), ("pcg", 200)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()
        settings = {"refresh_every": refresh_every, "b_s": b_s, "ridge_mode": ridge_mode, "cg_iterations": iterations}
        optimizer = lnb.LNB(net, 0.1, "paper", solver=solver, **settings)  # type: ignore[arg-type]
        train(net, optimizer, [(x.double(), y) for x, y in batches(7)])
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_arrow_steps_between_refreshes_use_the_last_statistics() -> None:
    net = model()
    optimizer = lnb.LNB(net, 0.01, "paper", solver="arrow", refresh_every=4)
    counts, moved = [], []
    for batch in batches(9):
        before = net[3].weight.detach().clone()
        train(net, optimizer, [batch])
        counts.append(int(optimizer.state[net[3].weight]["moment_step"]))
        moved.append(not torch.equal(net[3].weight, before))
    assert counts == [1, 2, 3, 3, 4, 4, 4, 4, 5]
    assert all(moved)
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize(
    ("settings", "factored"),
    [({}, False), ({"b_s": 0.5}, True), ({"refresh_every": 2}, True), ({"trust_region": "spectral"}, True)],
)
def test_solver_auto(settings: dict[str, object], factored: bool) -> None:
    assert lnb.LNB(nn.Linear(3, 2), preset="paper", solver="auto", **settings).config.factored is factored  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["matrix_free", "dual"])
@pytest.mark.parametrize("settings", [{"refresh_every": 2}, {"b_s": 0.5}, {"ridge_mode": "relative"}])
def test_inputs_alone_refuse_what_needs_a_second_moment(solver: str, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"solver='{solver}' keeps no second moment"):
        lnb.LNB(nn.Linear(3, 2), preset="paper", solver=solver, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [3, 200])
def test_dual_agrees_with_cholesky(rows: int) -> None:
    """With fewer rows than inputs and with more; linear and grouped, strided, padded, dilated convolution layers."""
    results = []
    for solver in ("dual", "cholesky"):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
            nn.Tanh(),
            nn.Conv2d(6, 3, 2, padding="same", bias=False),
            nn.Flatten(),
            nn.Linear(48, 5),
        ).double()
        optimizer = lnb.LNB(net, 0.1, "paper", solver=solver)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(2):  # two micro-batches
                net(torch.randn(rows, 4, 8, 8, generator=generator, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(results[0], results[1], rtol=1e-8, atol=1e-10)


def test_dual_needs_a_ridge() -> None:
    with pytest.raises(ValueError, match="solver='dual' needs ridge > 0"):
        lnb.LNB(nn.Linear(3, 2), preset="paper", solver="dual", ridge=0.0)


def test_dual_serves_packed_attention() -> None:
    results = []
    for solver in ("dual", "cholesky"):
        torch.manual_seed(0)
        net = nn.MultiheadAttention(8, 2, batch_first=True).double()
        optimizer = lnb.LNB(net, 0.1, "paper", solver=solver)
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        for _ in range(3):
            optimizer.zero_grad()
            net(x, x, x)[0].square().mean().backward()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(results[0], results[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", ["cholesky", "pcg", "dual", "matrix_free"])
def test_a_whole_number_is_a_ridge(solver: str) -> None:
    results = []
    for ridge in (1, 1.0):
        torch.manual_seed(0)
        net = nn.Linear(6, 3)
        optimizer = lnb.LNB(net, 0.1, "paper", solver=solver, ridge=ridge)
        net(torch.randn(9, 6)).square().mean().backward()
        optimizer.step()
        results.append(net.weight.detach().clone())
    assert torch.equal(*results)
