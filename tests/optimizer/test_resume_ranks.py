"""Eight processes: checkpoints of 1, 2, 4 and 8 ranks, each resumed on each of these numbers; and whole models on all eight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer.processes import run_ranks
from optimizer.rank_training import LR as WHOLE_LR
from optimizer.rank_training import Network
from optimizer.rank_training import trained as trained_whole
from optimizer.resume_ranks import ENDED_AT, NAME, NUMBERS, run_rank
from optimizer.shard_training import CASES, LR, trained
from torch import Tensor

import lnb

pytestmark = pytest.mark.filterwarnings("ignore")
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every rank wrote."""
    folder = tmp_path_factory.mktemp("resumed")
    run_ranks(run_rank, 8, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(8)]


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest number of its parameter."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


def test_each_number_of_ranks_does_as_one_process_does(found: Found) -> None:
    make, settings = CASES[NAME]
    model = make().double()
    expected = trained(model, lnb.LNB(model, LR, **settings), steps=(0, ENDED_AT))
    for number in NUMBERS:
        for rank in found[:number]:
            assert all(map(torch.equal, rank["ended"][number], found[0]["ended"][number]))
            assert error(rank["ended"][number], expected) <= 1e-10


def test_each_number_of_ranks_resumes_what_each_has_saved(found: Found) -> None:
    """Blocks of outputs are of one row, and end where shards do: the end is the same, on as many ranks to the bit."""
    for before in NUMBERS:
        saved, ended = found[0]["saved"][before], found[0]["ended"][before]
        for after in NUMBERS:
            for rank in found[:after]:
                state, parameters = rank["resumed"][before, after]
                assert state.keys() == saved.keys()
                assert all(torch.equal(state[key], saved[key]) for key in saved), (before, after)
                assert error(parameters, ended) <= (0 if before == after else 1e-10), (before, after)


def test_shards_of_other_ranks_are_refused(found: Found) -> None:
    for rank in found[:2]:
        of_shards, of_whole = rank["refused"]
        assert "is in shards on the ranks [0, 1], and the parameter on [0, 1, 2, 3]" in of_shards
        assert "is in shards, and the parameter is whole; gather it first" in of_whole


def test_eight_whole_models_do_as_one_process_does(found: Found) -> None:
    model = Network().double()
    expected = trained_whole(model, lnb.LNB(model, WHOLE_LR))
    assert all(torch.equal(rank["whole"], found[0]["whole"]) for rank in found)
    assert float((found[0]["whole"] - expected).abs().max() / expected.abs().max()) <= 1e-10
