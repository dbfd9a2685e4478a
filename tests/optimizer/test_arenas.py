"""State in arenas: a step's calls do not grow with the layers, states stay whole, and other code may replace them."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Operators
from torch import nn

import lnb
from lnb.statistics import arenas
from lnb.statistics.arenas import Arenas, chunked, sums_of
from lnb_kernels import _native

KEPT = Path(__file__).parent / "data" / "state_before_arenas.pt"
BLOCKS = ("second_moment", "factor", "output_moment", "output_factor")


def deep(layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(8, 8), nn.Tanh())))


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 3, bias=False),
    )


def backward(model: nn.Module, optimizer: lnb.LNB, seed: int) -> None:
    optimizer.zero_grad()
    first = next(model.parameters())
    shape = (16, 2, 4, 4) if first.dim() == 4 else (16, first.shape[1])
    model(torch.randn(shape, generator=torch.Generator().manual_seed(seed))).square().mean().backward()


def train(model: nn.Module, optimizer: lnb.LNB, seeds: range) -> None:
    for seed in seeds:
        backward(model, optimizer, seed)
        optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def calls_of_a_step(layers: int, seeds: int, **settings: Any) -> int:
    """The operators of one step after ``seeds`` others, beside views."""
    model = deep(layers)
    optimizer = lnb.LNB(model, lr=0.01, **settings)
    train(model, optimizer, range(seeds))
    backward(model, optimizer, seeds)
    with Operators() as found:
        optimizer.step()
    return len(found.launched)


@pytest.mark.parametrize("seeds", [9, 10, 11])
def test_the_calls_of_a_step_do_not_grow_with_the_layers(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of an ordinary step nor those of a refresh, but for the write of each weight whose growth is taken back."""
    monkeypatch.setattr("lnb.step.prepare", lambda *_: None)  # whose tables call no operators
    few, many = (calls_of_a_step(layers, seeds) for layers in (4, 12))
    assert many - few <= (8 if seeds == 10 else 0)


def test_blocks_of_equal_layers_are_side_by_side() -> None:
    model = deep(5)
    optimizer = lnb.LNB(model, lr=0.01)
    train(model, optimizer, range(3))
    states = [optimizer.state[layer.weight] for layer in model if isinstance(layer, nn.Linear)]
    for key in (*BLOCKS, "radius", "growth", "row_square"):
        entries = [state[key] for state in states]
        assert len({entry.untyped_storage().data_ptr() for entry in entries}) == 1, key
        assert entries[1].data_ptr() - entries[0].data_ptr() == entries[0].numel() * entries[0].element_size()


def test_a_saved_state_holds_its_own_memory() -> None:
    """A view that is saved would take its whole arena along."""
    model = mixed()
    optimizer = lnb.LNB(model, lr=0.01)
    train(model, optimizer, range(3))
    state = optimizer.state_dict()["state"]
    for entry in state.values():
        for value in entry.values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def replaced(optimizer: lnb.LNB) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = value.clone()


def moved_data(optimizer: lnb.LNB) -> None:
    """As ``module._apply`` and trainers do."""
    for parameter, state in optimizer.state.items():
        parameter.data = parameter.data.clone()
        for value in state.values():
            value.data = value.data.clone()


def reloaded(optimizer: lnb.LNB) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("change", [replaced, moved_data, reloaded])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_states_that_other_code_replaced_are_taken_over(change: Any, steps: int) -> None:
    one, other = mixed(), mixed()
    mine, twin = lnb.LNB(one, lr=0.01), lnb.LNB(other, lr=0.01)
    train(one, mine, range(steps))
    train(other, twin, range(steps))
    change(twin)
    train(one, mine, range(steps, steps + 12))
    train(other, twin, range(steps, steps + 12))
    assert same(one, other)


def pickled(model: nn.Module, optimizer: lnb.LNB) -> tuple[nn.Module, lnb.LNB]:
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    loaded: tuple[nn.Module, lnb.LNB] = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [lambda *pair: copy.deepcopy(pair), pickled])
def test_copies_go_on_alike_and_apart(copied: Any) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, lr=0.01)
    train(model, optimizer, range(4))
    other, twin = copied(model, optimizer)
    train(model, optimizer, range(4, 15))
    assert not same(model, other)
    train(other, twin, range(4, 15))
    assert same(model, other)


def test_parameters_that_come_and_go_keep_their_state() -> None:
    """Layers frozen for a while: the others' entries lie apart then."""
    model = deep(4)
    optimizer = lnb.LNB(model, lr=0.01)
    train(model, optimizer, range(3))
    middle = model[2]
    assert isinstance(middle, nn.Linear)
    kept = {key: value.clone() for key, value in optimizer.state[middle.weight].items()}
    middle.requires_grad_(False)
    train(model, optimizer, range(3, 14))
    assert all(torch.equal(kept[key], value) for key, value in optimizer.state[middle.weight].items())
    middle.requires_grad_(True)
    train(model, optimizer, range(14, 22))
    assert not torch.equal(kept["factor"], optimizer.state[middle.weight]["factor"])


@pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
def test_a_state_saved_before_there_were_arenas_loads_and_goes_on() -> None:
    saved = torch.load(KEPT, weights_only=True)
    model = mixed()
    model.load_state_dict(saved["model"])
    optimizer = lnb.LNB(model, lr=0.05)
    optimizer.load_state_dict(saved["optimizer"])
    train(model, optimizer, range(12, 15))
    for name, value in model.state_dict().items():
        assert torch.allclose(value, saved["later"][name], rtol=1e-4, atol=1e-6), name


def test_entries_of_an_arena() -> None:
    kept, like = Arenas(), torch.empty(())
    states: list[dict[str, Any]] = [{}, {"x": torch.tensor([7.0])}, {}]
    shapes = [(2,), (1,), (3,)]
    chosen = kept.select("x", states, shapes, like, start=lambda: torch.arange(6.0))
    assert torch.equal(chosen.read(), torch.tensor([0.0, 1.0, 7.0, 3.0, 4.0, 5.0]))
    apart = kept.select("x", [states[0], states[2]], [(2,), (3,)], like)
    assert torch.equal(apart.read(), torch.tensor([0.0, 1.0, 3.0, 4.0, 5.0]))
    apart.write(torch.full((5,), 9.0), torch.tensor([True, False, True, True, True]))
    assert torch.equal(chosen.read(), torch.tensor([9.0, 1.0, 7.0, 9.0, 9.0, 9.0]))
    assert torch.equal(states[2]["x"], torch.full((3,), 9.0))
    assert apart.memory() is None
    turned = kept.select("x", [states[2], states[1]], [(3,), (1,)], like)
    assert torch.equal(turned.read(), torch.tensor([9.0, 9.0, 9.0, 7.0]))


def test_sums_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.equal(sums_of(torch.arange(6.0), (1, 3, 2)), torch.tensor([0.0, 6.0, 9.0]))
    with monkeypatch.context() as patched:  # as on devices without sums of segments
        patched.setattr(arenas, "_SEGMENTS", ())
        assert torch.equal(sums_of(torch.arange(6.0), (1, 3, 2)), torch.tensor([0.0, 6.0, 9.0]))
        assert torch.equal(sums_of(torch.ones(6, 2), (4, 2)), torch.tensor([[4.0, 4.0], [2.0, 2.0]]))
    assert list(chunked([3, 1 << 19, 4, 5], int, torch.device("cpu"))) == [[3], [1 << 19], [4, 5]]
    assert list(chunked([3, 1 << 19, 4], int, torch.device("meta"))) == [[3, 1 << 19, 4]]
    assert list(chunked([3, 1 << 26, 4], int, torch.device("meta"))) == [[3], [1 << 26], [4]]
