"""``fully_shard`` and tensor parallelism by rows: two and four processes train as one process with the joined batch does."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer.processes import run_ranks
from optimizer.shard_training import (
    CASES,
    LR,
    STEPS,
    Plain,
    averages,
    load,
    long,
    run_rank,
    sharded,
    trained,
    watched,
    whole,
)
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import lnb
from lnb.layers.probed import ProbedLayer
from lnb.reports.watch_file import NAME, Tail

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every rank wrote, of two and of four."""
    made = tmp_path_factory.mktemp("shards")
    for ranks in (2, 4):
        run_ranks(run_rank, ranks, made)
    return made


@pytest.fixture(params=[2, 4])
def found(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return [of_rank(folder, rank, request.param) for rank in range(request.param)]


def of_rank(folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"rank{rank}of{ranks}.pt", weights_only=False)
    return found


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest number of its parameter."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


@functools.cache
def alone(name: str, steps: int = STEPS) -> list[Tensor]:
    make, settings = CASES[name]
    model = make().double()
    return trained(model, lnb.LNB(model, LR, **settings), steps=(0, steps))


def test_shards_do_as_one_process_does(found: list[dict[str, Any]]) -> None:
    for name in CASES:
        expected = alone(name)
        for rank in found:
            assert all(map(torch.equal, rank["cases"][name], found[0]["cases"][name])), name
            assert error(rank["cases"][name], expected) <= 1e-10, name


def test_float32_shards_do_as_one_process_does(folder: Path) -> None:
    model = Plain()
    expected = trained(model, lnb.LNB(model, LR / 10, block_size=2), dtype=torch.float32)
    assert error(of_rank(folder, 0, 2)["float32"], expected) <= 1e-5


def test_radii_change_after_the_opening_as_those_of_one_process(folder: Path) -> None:
    expected, radii = long()
    for rank in range(2):
        ended, own = of_rank(folder, rank, 2)["long"]
        assert error(ended, expected) <= 1e-8
        for got, of_one in zip(own, radii, strict=True):
            assert got == pytest.approx(of_one, rel=1e-8)
    assert any(radii[-1][layer] < 0.9 * radii[0][layer] for layer in radii[0])


def test_ways_to_shard(folder: Path) -> None:
    ways = [of_rank(folder, rank, 2)["ways"] for rank in range(2)]
    expected = of_rank(folder, 0, 2)["cases"]["fast"]
    for way in ways:
        for how in ("sharded later", "kept whole", "checkpointed", "offloaded"):
            assert all(map(torch.equal, way[how], expected)), how
    assert all(map(torch.equal, ways[0]["bfloat16"], ways[1]["bfloat16"]))
    start = [parameter.detach() for parameter in CASES["fast"][0]().parameters()]
    steps = [
        torch.cat([(a - b).flatten() for a, b in zip(end, start, strict=True)])
        for end in (ways[0]["bfloat16"], expected)
    ]
    assert float(torch.cosine_similarity(steps[0].double(), steps[1].double(), dim=0)) > 0.95


def test_copies_of_shards_stay_equal(folder: Path) -> None:
    first, *others = (of_rank(folder, rank, 4) for rank in range(4))
    assert error(first["copies"], first["cases"]["fast"]) <= 1e-10
    for other in others:
        assert all(map(torch.equal, other["copies"], first["copies"]))


def test_rows_on_tensor_parallel_ranks(found: list[dict[str, Any]]) -> None:
    model = Plain().double()
    expected = trained(model, lnb.LNB(model, LR, block_size=2))
    for rank in found:
        for how in ("alone", "with shards", "with a group", "columns", "columns of shards"):
            assert error(rank["tensor parallel"][how], expected) <= 1e-10, how


def test_columns_resume_as_they_were_and_on_one_process(found: list[dict[str, Any]]) -> None:
    model = Plain().double()
    expected = trained(model, lnb.LNB(model, LR, block_size=2), steps=(0, 8))
    for rank in found:
        same, known, ended = rank["tensor parallel"]["columns resumed"]
        assert same
        assert known
        assert error(ended, expected) <= 1e-10


def test_a_step_exchanges_moments_and_a_few_sums(folder: Path) -> None:
    layers, groups, parameters, verdict = 5, 7, 11, 5
    for rank in range(2):
        for number, step in enumerate(of_rank(folder, rank, 2)["exchanges"]):
            assert step["collectives"].keys() == {"c10d.allreduce_"}
            sizes = step["sizes"][1:] if number == 0 else step["sizes"]  # ranks compare their models once
            refreshed = bool(step["moments"])
            assert len(sizes) == 2 + refreshed
            triangles = sum(math.prod(shape[:-1]) * (shape[-1] + 1) // 2 for shape in step["moments"])
            assert sizes[0] == 8 * (triangles + verdict)
            assert sum(sizes[1:]) <= 8 * (7 * layers + parameters + groups)
            assert sum(step["collectives"].values()) == len(step["sizes"])


def test_steps_send_less_than_their_second_moments(folder: Path) -> None:
    """All that ten steps exchange is less than the moments that they gather once: a tenth of these a step."""
    for rank in range(2):
        steps = of_rank(folder, rank, 2)["exchanges of wide layers"][10:]
        gathered = [sum(8 * math.prod(shape) for shape in step["moments"]) for step in steps]
        assert gathered == [8 * (73**2 + 65**2)] + [0] * 9
        assert sum(sum(step["sizes"]) for step in steps) < 0.6 * sum(gathered)


def test_a_watch_shows_what_it_shows_of_one_process(folder: Path, tmp_path: Path) -> None:
    make, settings = CASES["fast"]
    model = make().double()
    watched(model, lnb.LNB(model, LR, **settings), tmp_path)
    expected, got = (Tail(place / NAME).read() for place in (tmp_path, folder / "watched"))
    assert [record.step for record in got] == [2, 4, 6]
    for one, other in zip(got, expected, strict=True):
        assert one.run == other.run
        assert one.layers.keys() == other.layers.keys()
        for name, figures in one.layers.items():
            if name == "attention.in_proj_weight":  # rank 0 has the queries and some of the keys
                assert figures["gain"] == pytest.approx(other.layers[name]["gain"], rel=1e-6)
                assert (figures["inputs"], other.layers[name]["inputs"]) == (8, 24)
            else:
                assert figures == pytest.approx(other.layers[name], rel=1e-6), name


def test_a_ranks_peak_is_within_adamws_and_the_plan(folder: Path) -> None:
    for rank in range(2):
        found = of_rank(folder, rank, 2)["bytes"]
        assert found["lnb"] <= found["adamw"] + found["planned"]
        assert found["lnb"] > found["adamw"] > 8 * 4 * 288 * 288 // 2  # two averages of half the rows


def test_resumes_on_as_many_ranks_bit_for_bit(found: list[dict[str, Any]]) -> None:
    assert all(all(rank["resumed"]["same"].values()) and len(rank["resumed"]["same"]) == 2 for rank in found)


def test_resumes_from_gathered_state_bit_for_bit(folder: Path) -> None:
    assert all(of_rank(folder, rank, 2)["resumed whole"] for rank in range(2))


def test_resumes_on_other_numbers_of_ranks(folder: Path) -> None:
    two, four = (of_rank(folder, 0, ranks)["resumed"] for ranks in (2, 4))
    state, parameters = four["other"]["fast"]
    assert state.keys() == two["state"]["fast"].keys()
    assert all(torch.equal(state[key], two["state"]["fast"][key]) for key in state)
    assert error(parameters, alone("fast", steps=8)) <= 1e-10  # blocks of outputs end where they did


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", ["fast", "factored"])
def test_resumes_on_one_rank(name: str, folder: Path) -> None:
    four = of_rank(folder, 0, 4)["resumed"]["state"][name]
    make, settings = CASES[name]
    model = sharded(make().double())
    optimizer = lnb.LNB(model, LR, **settings)
    load(folder / f"{name}4", model, optimizer)
    state = averages(model, optimizer)
    assert all(torch.equal(state[key], four[key]) for key in four)
    got = trained(model, optimizer, steps=(4, 8))
    assert error(got, alone(name, steps=8)) <= 1e-10


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("put_there", [False, True])
def test_state_is_made_of_shards_that_came_after_the_optimizer(put_there: bool) -> None:
    """A trainer may have put them into the optimizer's groups, as accelerate does."""
    make, settings = CASES["fast"]
    model = make().double()
    optimizer = lnb.LNB(model, LR, **settings)
    sharded(model)
    if put_there:
        optimizer.param_groups[0]["params"] = list(model.parameters())
    saved = get_optimizer_state_dict(model, optimizer)
    assert saved["state"].keys() == dict(model.named_parameters()).keys()
    assert error(trained(model, optimizer), alone("fast")) <= 1e-10


@pytest.mark.usefixtures("one_rank")
def test_detached_layers_stay_sharded() -> None:
    model = CASES["fast"][0]()
    lnb.attach(model)
    lnb.detach(sharded(model))
    assert all(isinstance(child, FSDPModule) for child in model.children())
    assert not any(isinstance(module, ProbedLayer) for module in model.modules())
    model(torch.rand(2, 2, 6, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", ["fast", "factored"])
def test_whole_parameters_and_shards_load_each_others_state(name: str) -> None:
    make, settings = CASES[name]
    plain = make().double()
    first = lnb.LNB(plain, LR, **settings)
    trained(plain, first, steps=(0, 4))
    model = make().double()
    model.load_state_dict(plain.state_dict())
    sharded(model)
    second = lnb.LNB(model, LR, **settings)
    second.load_state_dict(first.state_dict())
    trained(model, second, steps=(4, 6))
    gathered = second.state_dict()
    for entry in gathered["state"].values():
        entry.update({key: value.full_tensor() for key, value in entry.items() if isinstance(value, DTensor)})
    last = make().double()
    with torch.no_grad():
        for parameter, value in zip(last.parameters(), whole(model), strict=True):
            parameter.copy_(value)
    third = lnb.LNB(last, LR, **settings)
    third.load_state_dict(gathered)
    ended = [trained(net, opt, steps=(6, 8)) for net, opt in ((model, second), (last, third))]
    assert error(ended[1], ended[0]) <= 1e-10
    assert error(ended[0], alone(name, steps=8)) <= 1e-10


@pytest.mark.parametrize("how", ["failed", "failed unseen"])
def test_a_step_that_one_rank_cannot_make_none_makes(how: str, folder: Path) -> None:
    results = [of_rank(folder, rank, 2)[how] for rank in range(2)]
    for number, failed in enumerate(results):
        assert failed["raised"] == 3 * (number == 1)
        assert failed["moved"] == 0
        assert failed["counts"] == {"steps": 6, "skipped_steps": 4}
        assert all(map(torch.equal, failed["parameters"], results[0]["parameters"]))


def test_ranks_that_are_left_alone_in_a_step_are_told_so(found: list[dict[str, Any]]) -> None:
    for rank in found[:-1]:
        said, unmoved = rank["deserted"]
        assert said.startswith(f"step(): the exchange of sums over the rows of layers with {len(found)} ranks failed")
        assert "No parameter was changed" in said
        assert unmoved


def test_what_is_said_to_shards_that_cannot_be_served(found: list[dict[str, Any]]) -> None:
    for rank in found:
        said = rank["complaints"]
        assert "layer '1'" in said["columns"]
        assert "Shard(dim=1)" in said["columns"]
        assert "trust_region='two_sided' and solver='cholesky' work" in said["columns iterated"]
        assert "RowwiseParallel before lnb.LNB(model)" in said["columns later"]
        assert "equal shares of a linear layer's inputs" in said["odd columns"]
        assert "its bias is not sharded" in said["bias"]
        assert "trust_region='spectral'" in said["region"]
        assert "damping='gain'" in said["damping"]
        assert "solver='matrix_free'" in said["inputs"]
        assert "process_group=None" in said["alone"]
        assert "which is no part of it" in said["mesh"]
        assert "only nn.Linear layers" in said["attention"]
        assert "process_group has 1 ranks" in said["group"]
        assert "rank 0 has momentum=0.9, rank 1 has momentum=0.8" in said["settings"]
        if len(found) > 2:
            assert "process_group='auto'" in said["unknown"]
