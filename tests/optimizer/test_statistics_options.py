"""What second moments are taken of: sampled rows, lower precision."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from optimizer.small_models import batches, loss_of, mixed, train
from torch import nn

import lnb
import lnb_kernels as lk
from lnb.solvers.solve import Solution, SolverInputs, solve
from lnb.statistics.schedule import sample_start


def moments_of(model: nn.Module, optimizer: lnb.LNB, index: int) -> list[torch.Tensor]:
    """What the layers gathered in the forward and backward pass of step ``index``."""
    optimizer.zero_grad()
    loss_of(model, batches(index + 1)[index]).backward()
    found = [block.captures[0].moments for block in optimizer._inventory.layers]
    assert all(s is not None for s in found)
    return [s.clone() for s in found if s is not None]


def test_sample_starts_fill_the_interval_evenly() -> None:
    starts = sorted(sample_start(10 * i) for i in range(100))
    gaps = [b - a for a, b in pairwise(starts)]
    assert starts[0] >= 0
    assert starts[-1] < 1
    assert max(gaps) < 0.03  # three times an even spacing


def test_every_refresh_reads_other_rows_and_they_stand_for_all() -> None:
    model = mixed()
    optimizer = lnb.LNB(model, 0.0, sample_every=4)
    conv, *linear = model[0], model[3], model[5]
    seen = []
    inputs: list[torch.Tensor] = []
    for layer in (conv, *linear):
        layer.register_forward_hook(lambda module, args, out: inputs.append(args[0].detach()))
    for index in (0, 1):
        inputs.clear()
        gathered = moments_of(model, optimizer, index)
        rows = (torch.arange(4) * 4 + int(sample_start(index) * 16)) % 16
        seen.append(rows)
        torch.testing.assert_close(gathered[0][0], 4 * lk.conv2d_second_moment(inputs[0][rows], 3, padding=1))
        for s, x in zip(gathered[1:], inputs[1:], strict=True):
            torch.testing.assert_close(s[0, 0], 4 * lk.second_moment(x[rows]))
            assert s.flatten()[-1] == 16
        optimizer.step()
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("settings", [{"sample_every": 3}, {"moment_dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_runs_resume_bit_for_bit(preset: str, settings: dict[str, object]) -> None:
    data = batches(7)
    model = mixed()
    optimizer = lnb.LNB(model, 0.02, preset, **settings)
    train(model, optimizer, data[:3])
    saved, parameters = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    train(model, optimizer, data[3:])
    again = mixed()
    again.load_state_dict(parameters)
    resumed = lnb.LNB(again, 0.02, preset, **settings)
    resumed.load_state_dict(saved)
    train(again, resumed, data[3:])
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lower_precision_changes_the_step_a_little() -> None:
    """By the rounding of the inputs, not more: and it does change it."""
    steps = []
    for dtype in (None, torch.float32, torch.bfloat16):
        model = mixed()
        before = [p.detach().clone() for p in model.parameters()]
        train(model, lnb.LNB(model, 0.05, "paper", moment_dtype=dtype), batches(1))
        steps.append(torch.cat([(p - b).flatten().detach() for p, b in zip(model.parameters(), before, strict=True)]))
    assert torch.equal(steps[0], steps[1])
    assert 0 < (steps[2] - steps[0]).norm() < 0.01 * steps[0].norm()


@pytest.mark.parametrize("settings", [{"sample_every": 2}, {"moment_dtype": torch.bfloat16}], ids=str)
def test_attention_reads_what_was_asked_for(settings: dict[str, object]) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer = lnb.LNB(attention, 0.01, **settings)
    x = torch.randn(3, 6, 8)
    attention(x, x, x)[0].square().sum().backward()
    s = optimizer._inventory.layers[0].captures[0].moments
    assert s is not None
    rows = x.transpose(0, 1)  # [L, N, E], as the projections see it
    if "sample_every" in settings:
        assert s[0, 0, -1, -1] == 18
        everything = lk.second_moment(rows)
        assert not torch.allclose(s[0, 0], everything)
    else:
        torch.testing.assert_close(s[0, 0], lk.second_moment(rows.bfloat16()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"solver": "arrow"},
        {"solver": "matrix_free"},
        {"solver": "dual"},
        {"b_s": 0.5, "refresh_every": 2},
        {"preset": "fast", "trust_region": "layer"},
    ],
    ids=str,
)
def test_solvers_only_read_statistics(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage before them has updated all averages: a solver changes its own direction, and nothing else."""
    model = mixed()
    optimizer = lnb.LNB(model, **({"preset": "paper"} | settings))
    solved = []

    def watched(given: SolverInputs) -> Solution:
        contexts = given.contexts
        kept = {
            context.layer: {k: v.clone() for k, v in context.state.items() if k != "direction"} for context in contexts
        }
        found = solve(given)
        for context in contexts:
            assert set(context.state) - {"direction"} == set(kept[context.layer])
            assert all(torch.equal(context.state[key], value) for key, value in kept[context.layer].items())
        solved.append(max(map(len, kept.values())))
        return found

    monkeypatch.setattr("lnb.step.prepare", lambda *_: None)  # whose calls solve by themselves
    monkeypatch.setattr("lnb.step.solve", watched)
    train(model, optimizer, batches(3))
    assert len(solved) == 3
    assert settings.get("solver") == "dual" or solved[0] > 0, "there were statistics to change"
