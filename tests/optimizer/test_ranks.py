"""Two processes train one model as one process with both shares of every batch would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from optimizer.rank_training import CASES, RANKS, Network, run_rank, trained

import lnb


def test_ranks_stay_equal_and_do_as_one_process_does(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(tmp_path,), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(RANKS))
    for name, settings in CASES.items():
        model = Network().double()
        expected = trained(model, lnb.LNB(model, 0.02, **settings))
        for how in ("wrapped", "group"):
            got = first["parameters"][f"{name}, {how}"]
            assert torch.equal(got, second["parameters"][f"{name}, {how}"]), (name, how)
            torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    auto, kept, timed, wrong, unknown = first["complaints"]
    assert "solver='auto'" in auto
    assert "solver='matrix_free'" in kept
    assert "max_overhead=0.1" in timed
    assert "process_group='gloo'" in wrong
    assert "2 ranks" in unknown


def test_a_group_needs_running_ranks() -> None:
    with pytest.raises(ValueError, match=r"process_group='gloo' needs torch\.distributed"):
        lnb.LNB(Network(), process_group="gloo")
