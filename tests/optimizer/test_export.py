"""Tools that take a model apart: what works on an attached model, and what after ``lnb.detach`` of a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer.small_models import batches, equal_parameters, mixed, train
from torch import Tensor, nn

import lnb


class Attention(nn.Module):
    """Self-attention, a 1-d convolution and a linear layer: rows of ``[3, 4, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.slide = nn.Conv1d(4, 4, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.slide(self.mix(x, x, x, need_weights=False)[0]))
        return out


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (mixed, (5, 2, 4, 4)),
    "attention": (Attention, (3, 4, 8)),
}
TOOLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "compile": lambda model, x: torch.compile(model, backend="eager", fullgraph=True),
    "symbolic_trace": lambda model, x: torch.fx.symbolic_trace(model),
    "jit.trace": lambda model, x: torch.jit.trace(model, x, check_trace=False),
    "jit.script": lambda model, x: torch.jit.script(model),
}
ON_ATTACHED = ("export", "compile", "symbolic_trace")


def trained(name: str) -> tuple[nn.Module, lnb.LNB, Tensor]:
    make, shape = MODELS[name]
    model = make()
    optimizer = lnb.LNB(model)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    step(model, optimizer, x)
    return model, optimizer, x


def step(model: nn.Module, optimizer: lnb.LNB, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", MODELS)
def test_a_detached_copy_is_an_ordinary_model_and_training_goes_on(name: str, tool: str) -> None:
    model, optimizer, x = trained(name)
    twin, second = copy.deepcopy((model, optimizer))
    plain = lnb.detach(copy.deepcopy(model)).eval()
    taken = TOOLS[tool](plain, x)
    torch.testing.assert_close(taken(x), model.eval()(x))
    model.train()
    for each in ((model, optimizer), (twin, second)):
        step(*each, x)
    assert equal_parameters(model, twin)


@pytest.mark.filterwarnings("ignore:A model attribute:UserWarning")  # the moment probes, which are constants then
@pytest.mark.parametrize("tool", ON_ATTACHED)
@pytest.mark.parametrize("name", MODELS)
def test_what_works_on_an_attached_model(name: str, tool: str) -> None:
    model, _, x = trained(name)
    taken = TOOLS[tool](model.eval(), x)
    torch.testing.assert_close(taken(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tool", sorted(set(TOOLS) - {*ON_ATTACHED}))
@pytest.mark.parametrize("name", MODELS)
def test_what_needs_a_detached_model_says_so_by_failing(name: str, tool: str) -> None:
    """None of these silently makes a model that computes something else."""
    model, _, x = trained(name)
    with pytest.raises(Exception, match=r"."):
        TOOLS[tool](model, x)


def test_an_exported_program_needs_no_lnb_after_detach() -> None:
    model, _, x = trained("convolution")
    attached, plain = (torch.export.export(each, (x,)) for each in (model, lnb.detach(copy.deepcopy(model))))

    def own_operators(program: Any) -> set[str]:
        return {str(node.target) for node in program.graph.nodes if str(node.target).startswith("lnb")}

    assert own_operators(attached)
    assert not own_operators(plain)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_of_an_attached_model_trains_it(name: str) -> None:
    model, optimizer, x = trained(name)
    twin, second = copy.deepcopy((model, optimizer))
    graph = torch.fx.symbolic_trace(model)
    assert {str(node.target) for node in graph.graph.nodes if node.op == "call_module"} <= dict(
        model.named_modules()
    ).keys()
    for _ in range(2):
        step(graph, optimizer, x)
        step(twin, second, x)
    assert equal_parameters(model, twin)
    assert "__module__" not in vars(next(iter(lnb.detach(model).children())))


def test_compiled_before_and_after_attaching_trains_alike() -> None:
    models = [mixed() for _ in range(3)]
    before = torch.compile(models[0], backend="aot_eager")
    optimizers = [lnb.LNB(model) for model in models]
    after = torch.compile(models[1], backend="aot_eager")
    for net, optimizer in ((before, optimizers[0]), (after, optimizers[1]), (models[2], optimizers[2])):
        train(net, optimizer, batches(3))  # type: ignore[arg-type]
    for model in models[:2]:
        for p, q in zip(model.parameters(), models[2].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
