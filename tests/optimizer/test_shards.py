"""``fully_shard`` and tensor parallelism by rows: two and four processes train as one process with the joined batch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from optimizer.shard_training import CASES, LR, Plain, averages, load, run_rank, sharded, trained
from torch import Tensor

import lnb

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every rank wrote, of two and of four."""
    made = tmp_path_factory.mktemp("shards")
    for ranks in (2, 4):
        mp.spawn(run_rank, args=(ranks, made), nprocs=ranks)
    return made


@pytest.fixture(params=[2, 4])
def found(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    ranks: int = request.param
    return [torch.load(folder / f"rank{rank}of{ranks}.pt", weights_only=False) for rank in range(ranks)]


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest number of its parameter."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


def alone(name: str, dtype: torch.dtype = torch.float64, steps: int = 6) -> list[Tensor]:
    make, settings = CASES[name]
    model = make().to(dtype)
    return trained(model, lnb.LNB(model, LR, **settings), dtype=dtype, steps=(0, steps))


def test_shards_do_as_one_process_does(found: list[dict[str, Any]]) -> None:
    for name in CASES:
        expected = alone(name)
        for rank in found:
            assert all(map(torch.equal, rank["cases"][name], found[0]["cases"][name])), name
            assert error(rank["cases"][name], expected) <= 1e-10, name
    assert error(found[0]["float32"], alone("fast", torch.float32)) <= 1e-5


def test_ways_to_shard(found: list[dict[str, Any]]) -> None:
    expected = found[0]["cases"]["fast"]
    for rank in found:
        for how in ("sharded later", "kept after forward", "checkpointed"):
            assert all(map(torch.equal, rank["ways"][how], expected)), how
        assert error(rank["ways"]["copies"], expected) <= 1e-10
        assert all(map(torch.equal, rank["ways"]["copies"], found[0]["ways"]["copies"]))
        assert all(map(torch.equal, rank["ways"]["bfloat16"], found[0]["ways"]["bfloat16"]))
        assert error(rank["ways"]["bfloat16"], expected) <= 0.2


def test_rows_on_tensor_parallel_ranks(found: list[dict[str, Any]]) -> None:
    model = Plain().double()
    expected = trained(model, lnb.LNB(model, LR, block_size=2))
    for rank in found:
        for how in ("alone", "with shards"):
            assert error(rank["tensor parallel"][how], expected) <= 1e-10, how


def test_a_step_exchanges_moments_and_a_few_sums(found: list[dict[str, Any]]) -> None:
    layers, groups, parameters = 5, 7, 12
    for rank in found:
        for number, step in enumerate(rank["exchanges"]):
            assert all("all_reduce" in operator for operator in step["collectives"]), step
            sizes = step["sizes"][2:] if number == 0 else step["sizes"]  # ranks compare their models once
            refreshed = bool(step["moments"])
            assert len(sizes) == 2 + refreshed
            padding = 8 * 32 * (len(step["moments"]) + 1)
            assert sizes[0] <= sum(step["moments"]) + padding
            assert sum(sizes[1:]) <= 8 * (6 * layers + parameters + groups)
            assert sum(step["collectives"].values()) == len(step["sizes"])


def test_resumes_on_as_many_ranks_bit_for_bit(found: list[dict[str, Any]]) -> None:
    assert all(all(rank["resumed"]["same"].values()) and len(rank["resumed"]["same"]) == 3 for rank in found)


def test_resumes_on_other_numbers_of_ranks(folder: Path) -> None:
    two, four = (torch.load(folder / f"rank0of{ranks}.pt", weights_only=False)["resumed"] for ranks in (2, 4))
    for name in ("fast", "uneven", "factored"):
        state, parameters = four["other"][name]
        assert state.keys() == two["state"][name].keys()
        assert all(torch.equal(state[key], two["state"][name][key]) for key in state), name
        assert all(bool(parameter.isfinite().all()) for parameter in parameters)
    assert error(four["other"]["factored"][1], alone("factored", steps=10)) <= 1e-10


def test_resumes_on_one_rank(folder: Path, tmp_path: Path) -> None:
    four = torch.load(folder / "rank0of4.pt", weights_only=False)["resumed"]["state"]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        for name in ("fast", "factored"):
            make, settings = CASES[name]
            model = sharded(make().double())
            optimizer = lnb.LNB(model, LR, **settings)
            load(folder / f"{name}4", model, optimizer)
            state = averages(model, optimizer)
            assert all(torch.equal(state[key], four[name][key]) for key in four[name])
            got = trained(model, optimizer, steps=(4, 10))
        assert error(got, alone("factored", steps=10)) <= 1e-10
    finally:
        dist.destroy_process_group()


def test_a_step_that_one_rank_cannot_make_none_makes(found: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(found):
        failed = rank["failed"]
        assert failed["raised"] == (number == 1)
        assert failed["moved"] == 0
        assert failed["counts"] == {"steps": 6, "skipped_steps": 2}
        assert all(map(torch.equal, failed["parameters"], found[0]["failed"]["parameters"]))


def test_what_is_said_to_shards_that_cannot_be_served(found: list[dict[str, Any]]) -> None:
    for rank in found:
        said = rank["complaints"]
        assert "layer '1'" in said["columns"]
        assert "Shard(dim=1)" in said["columns"]
        assert "ColwiseParallel in place of RowwiseParallel" in said["row-wise"]
        assert "its bias is not sharded" in said["bias"]
        assert "trust_region='spectral'" in said["region"]
        assert "cg_scope='layer'" in said["scope"]
        assert "damping='gain'" in said["damping"]
        assert "solver='matrix_free'" in said["inputs"]
        assert "process_group=None" in said["alone"]
        assert "only nn.Linear layers" in said["attention"]
        assert "rank 0 has momentum=0.9, rank 1 has momentum=0.8" in said["settings"]
        if len(found) > 2:
            assert "process_group='auto'" in said["unknown"]
