"""Two and four processes train one model as one process with all shares of every batch would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer.processes import run_ranks
from optimizer.rank_training import CASES, LR, WAYS, Network, Plain, images, run_rank, trained

import lnb

Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every rank wrote."""
    ranks, folder = request.param, tmp_path_factory.mktemp("ranks")
    run_ranks(run_rank, ranks, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


def test_ranks_stay_equal_and_do_as_one_process_does(found: Found) -> None:
    for name, settings in CASES.items():
        hows = WAYS if name == "fast" else WAYS[:2]
        ways = {how: (1e-10, lambda: Network().double(), LR) for how in hows}
        for how, (tolerance, make, lr) in {**ways, "float32": (1e-5, Plain, LR / 10)}.items():
            model = make()
            expected = trained(model, lnb.LNB(model, lr, **settings))
            got, *others = (rank["parameters"][name, how] for rank in found)
            assert all(torch.equal(got, other) for other in others), (name, how)
            error = (got - expected).abs().max() / expected.abs().max()
            assert error <= tolerance, (name, how, float(error))


def test_second_moments_have_one_reduction_beside_the_backward_pass(found: Found) -> None:
    for rank in found:
        for first, *later in rank["exchanges"].values():
            assert first == (True, 0, 3)  # ranks compare their models before
            assert [(launched, own) for _, launched, own in later] == [(int(gathers), 1) for gathers, _, _ in later]
        assert {step[0] for steps in rank["exchanges"].values() for step in steps} == {True, False}


def test_refreshes_that_are_shared_out_make_the_same(found: Found) -> None:
    shares = []
    for rank in found:
        (moved, state, everything), (other, others_state, share) = rank["split"]["alone"], rank["split"]["split"]
        assert torch.equal(moved, other)
        for number, entry in state.items():
            assert entry.keys() == others_state[number].keys()
            assert all(torch.equal(entry[key], others_state[number][key]) for key in entry)
        shares.append(share)
    assert sum(shares) == everything
    assert len(found) > 2 or max(shares) < everything


def test_transposed_weights_do_as_in_one_process(found: Found) -> None:
    for rank in found:
        *ways, alone = rank["transposed"]
        for way in ways:
            for got, expected in zip(way, alone, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_ranks_whose_batches_reach_different_layers_stay_equal(found: Found) -> None:
    first, *others = (rank["branches"] for rank in found)
    for other in others:
        assert all(map(torch.equal, first, other))


def test_a_step_that_one_rank_cannot_make_none_makes(found: Found) -> None:
    for number in range(len(CASES)):
        results = [rank["failed"][number] for rank in found]
        assert [result["raised"] for result in results] == [8 * (rank == 1) for rank in range(len(found))]
        assert all(result["moved"] == 0 for result in results)
        assert all(result["counts"] == {"steps": 16, "skipped_steps": 8} for result in results)
        assert all(torch.equal(result["parameters"], results[0]["parameters"]) for result in results)
        assert bool(results[0]["parameters"].isfinite().all())


def test_moments_of_all_ranks_are_those_of_all_rows(found: Found) -> None:
    """On every rank to the bit, whose shares have unlike numbers of rows; what does not fit is an error on every rank."""
    ((x, _),) = images(torch.float32, 1)
    whole = lnb.gather_moments(Network(), [x])
    for rank in found:
        for name, moment in whole.items():
            square, mean, count = rank["moments"][name]
            assert torch.equal(count, moment.count)
            torch.testing.assert_close(square, moment.second_moment)
            torch.testing.assert_close(mean, moment.mean)
            assert torch.equal(square, found[0]["moments"][name][0])
        assert "moments of different layers" in rank["moments"]["said of layers"]
        assert "layer 'head': the moment of a rank cannot be used" in rank["moments"]["said of NaN"]
    assert "mean holds NaN" in found[1]["moments"]["said of NaN"]


def test_ranks_that_differ_are_told_in_what(found: Found) -> None:
    for number, rank in enumerate(found):
        said = rank["differences"]
        moving = {"none", "none again", "at last"}
        assert all(said[name] == ("", False) for name in moving)
        assert all(said[name][1] for name in said.keys() - moving)
        assert ("layer 'head' was attached anew" in said["layer anew"][0]) == (number == 1)
        assert "'lr': 0.02" in said["rate"][0]
        assert "rank 1 has param_groups[0] with {'lr': 0.5" in said["rate"][0]
        for name in ("layer", "layer still"):
            assert ("layer 'module.head' was detached" in said[name][0]) == (number == 1)
        assert "rank 1 has param_groups[1] of 1 parameters" in said["parameter"][0]
        assert "rank 0 has step 1, rank 1 has step 2" in said["state"][0]
        widths = "rank 0 has parameter 'weight' (2, 3) torch.float32 whole, rank 1 has parameter 'weight' (3, 3)"
        assert widths in said["model"][0]


def test_ranks_that_are_left_alone_are_told_so(found: Found) -> None:
    for rank in found[:-1]:
        said, unmoved = rank["deserted"]
        assert said.startswith(f"step(): the exchange of second moments with {len(found)} ranks failed")
        assert unmoved


def test_a_closure_that_raises_on_one_rank_is_told_to_all(found: Found) -> None:
    """It raises there, and on the others within the group's timeout: the closure's own exchanges may be under way."""
    if len(found) == 2:
        waiting, raising = (rank["closure"] for rank in found)
        assert waiting[0].startswith("step(): the exchange of second moments with 2 ranks failed")
        assert raising[0] == "the loss of rank 1 is not what it should be"
        assert waiting[1]
        assert raising[1]


def test_strict_raises_on_every_rank(found: Found) -> None:
    assert all(len(rank["strict"]) == 2 and "NaN or inf" in rank["strict"][0] for rank in found)


def test_copies_find_their_own_ranks(found: Found) -> None:
    for rank in found:
        for ended in rank["copy"]:
            assert torch.equal(ended, found[0]["parameters"]["fast", "wrapped"])


def test_what_is_said_to_several_ranks(found: Found) -> None:
    for rank in found:
        said = rank["complaints"]
        assert "solver='auto'" in said["auto solver"]
        assert "solver='matrix_free'" in said["kept inputs"]
        assert "solver='matrix_free'" in said["wrapped"]
        assert "max_overhead=0.1" in said["by time"]
        assert "loss is for one process" in said["loss"]
        assert "process_group='gloo'" in said["no group"]
        for name in ("other ranks", "alone"):
            assert "leave process_group out, or give both the same ranks" in said[name]
        for name in ("unknown", "unknown again"):
            assert f"process_group='auto': torch.distributed runs {len(found)} ranks" in said[name]
            assert "process_group=None" in said[name]


def test_a_rank_can_train_alone(found: Found) -> None:
    model = Network().double()
    expected = trained(model, lnb.LNB(model, 0.02))
    for rank in found:  # a process with another number of threads may round otherwise
        torch.testing.assert_close(rank["alone"], expected, rtol=1e-12, atol=1e-12)


def test_a_group_needs_running_ranks() -> None:
    with pytest.raises(ValueError, match=r"process_group='gloo' needs torch\.distributed"):
        lnb.LNB(Network(), process_group="gloo")
