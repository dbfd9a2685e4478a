"""The study of condition numbers: its solvers, and the page that it writes."""

from __future__ import annotations

import itertools

import condition
import pytest
import torch


def test_the_residuals_of_levenberg_marquardt_are_the_error_of_all_rows() -> None:
    problem = condition.Problem(1e3, 6, 0)
    of_all = problem.error(problem.model(problem.x).detach())
    assert next(condition.levenberg_marquardt(problem)) == pytest.approx(of_all, rel=1e-9)


@pytest.mark.parametrize(("name", "passes"), [("lnb-full-batch", 40), ("lm", 40), ("lbfgs", 200)])
def test_solvers_meet_a_target(name: str, passes: int) -> None:
    torch.set_num_threads(1)
    met = condition.run(name, None, 1e2, 16, 0)["1e-06"]
    assert met is not None
    assert met[0] <= passes


def test_a_rate_that_is_too_small_does_not() -> None:
    problem = condition.Problem(1e2, 6, 0)
    errors = list(itertools.islice(condition.errors_of(problem, "sgd", 1e-9), 5))
    assert errors[-1] == pytest.approx(errors[0], rel=1e-3)


def test_the_page_says_never_where_most_runs_did_not_meet_the_target() -> None:
    runs = [{"1e-06": (12, 0.1)}, {"1e-06": None}, {"1e-06": None}]
    assert condition.cell(runs, 1e-6, 0, str) == "never (12 to never)"
    assert condition.cell(runs[:1], 1e-6, 0, str) == "12"


def test_the_committed_page_is_made_from_the_data() -> None:
    assert condition.PAGE.read_text(encoding="utf-8") == condition.page(condition.read(condition.DATA))
