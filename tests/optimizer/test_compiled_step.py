"""``opt.step`` under ``torch.compile``: it runs as it is, and what surrounds it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lnb


def model() -> tuple[nn.Module, lnb.LNB]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    return net, lnb.LNB(net, lr=0.01)


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, 4) for _ in range(3)]


def trained(step: Callable[[nn.Module, lnb.LNB], Callable[[Tensor], Any]]) -> list[Tensor]:
    net, optimizer = model()
    run = step(net, optimizer)
    before = [p.detach().clone() for p in net.parameters()]
    for x in batches():
        run(x)
    assert not any(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    assert optimizer.diagnostics()["steps"] == 3
    return [p.detach() for p in net.parameters()]


def plain(net: nn.Module, optimizer: lnb.LNB, step: Callable[[], Any] | None = None) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        (step or optimizer.step)()

    return run


def counting(graphs: list[int]) -> Callable[..., Any]:
    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return backend


def test_the_step_alone() -> None:
    expected = trained(plain)
    actual = trained(lambda net, opt: plain(net, opt, torch.compile(opt.step, backend="eager")))
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def test_a_step_in_compiled_code_and_a_compiled_closure() -> None:
    """Numbers of compiled passes may be off by roundings; that the passes are compiled is seen in their graphs."""
    expected, graphs = trained(plain), list[int]()

    def around(net: nn.Module, optimizer: lnb.LNB) -> Callable[[Tensor], Any]:
        def run(x: Tensor) -> Tensor:
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss * 2

        return torch.compile(run, backend=counting(graphs))

    def within(net: nn.Module, optimizer: lnb.LNB) -> Callable[[Tensor], Any]:
        loss_of = torch.compile(lambda x: net(x).square().mean(), backend=counting(graphs))

        def run(x: Tensor) -> None:
            def closure() -> float:
                optimizer.zero_grad()
                loss = loss_of(x)
                loss.backward()
                return float(loss.detach())

            assert optimizer.step(closure) > 0

        return run

    for way in (around, within):
        graphs.clear()
        for actual, right in zip(trained(way), expected, strict=True):
            torch.testing.assert_close(actual, right)
        assert graphs


def test_one_graph_cannot_hold_it() -> None:
    net, optimizer = model()
    net(batches()[0]).square().mean().backward()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"(?s)(disable|skip).*step"):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    optimizer.step()
