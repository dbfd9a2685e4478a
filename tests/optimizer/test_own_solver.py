"""A solver from outside of the package, in one file."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lnb
from lnb import solvers
from lnb.config import Config, resolve_config
from lnb.context import LayerContext
from lnb.solvers import Solver
from lnb.statistics.averages import second_moment_of
from lnb.verdict import Verdict


class Exact(Solver):
    """PyTorch's own solution with each step's whole second moment."""

    name = "exact, a test's"
    keeps_feature_moments = False

    def direction(self, context: LayerContext, gradient: Tensor, verdict: Verdict) -> Tensor:
        """``h = g~ (E[x~ x~'] + ridge)^-1``."""
        metric = second_moment_of(context).squeeze(1).clone()
        metric.diagonal(dim1=-2, dim2=-1)[:, :-1] += context.ridge
        if not context.with_bias:
            metric = metric[:, :-1, :-1]
        return torch.linalg.solve(metric, gradient, left=False)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers._SOLVERS, "known", dict(solvers._SOLVERS.known))
    solvers.register(Exact())


def train(model: nn.Module, optimizer: lnb.LNB, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 2, 5, 5, generator=generator, dtype=torch.float64) + 1).square().mean().backward()
        optimizer.step()


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 6, bias=False),
        nn.Tanh(),
        nn.Linear(6, 2),
    )
    return nn.Sequential(*layers).double()


def test_its_steps_are_those_of_a_factor_of_the_same_metric() -> None:
    model = network()
    twin = copy.deepcopy(model)
    optimizer = lnb.LNB(model, 0.1, "paper", solver=Exact.name)
    train(model, optimizer, 4)
    train(twin, lnb.LNB(twin, 0.1, "paper", solver="cholesky"), 4)
    for ours, right, start in zip(model.parameters(), twin.parameters(), network().parameters(), strict=True):
        assert not torch.equal(ours, start)
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-12)
    assert optimizer.state[model[0].weight].keys() == {"step", "momentum"}, "its traits say that it keeps nothing"
    resumed = lnb.LNB(copy.deepcopy(model), 0.1, "paper", solver=Exact.name)
    resumed.load_state_dict(optimizer.state_dict())
    assert [row.solver for row in optimizer.plan()] == [Exact.name] * 3
    with pytest.raises(ValueError, match=r"exact, a test's.*cholesky"):
        lnb.LNB(network(), 0.1, "paper", solver="cholesky").load_state_dict(optimizer.state_dict())


def test_settings_know_it_by_its_traits() -> None:
    assert solvers.names() == ("auto", "pcg", "cholesky", "arrow", "matrix_free", "dual", Exact.name)
    config = resolve_config("paper", {"solver": Exact.name})
    assert config.method is solvers.solver_named(Exact.name)
    assert config.needs(refresh=True) == (True, False, False)
    with pytest.raises(ValueError, match=r"solver='exact' must be one of auto, pcg, .*, exact, a test's"):
        Config(solver="exact")
    with pytest.raises(
        ValueError, match=r"trust_region='spectral' needs a factor of the metric: solver=.exact, a test"
    ):
        Config(solver=Exact.name, trust_region="spectral")


@pytest.mark.parametrize(
    ("solver", "kind", "message"),
    [
        (Exact, TypeError, "must be an instance of"),
        ("pcg", TypeError, "solver='pcg'"),
        (type("Nameless", (Solver,), {})(), ValueError, "name=None of Nameless"),
        (type("Taken", (Solver,), {"name": "dual"})(), ValueError, "name='dual' is taken by Dual"),
    ],
)
def test_what_is_no_solver(solver: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        solvers.register(solver)  # type: ignore[arg-type]


def test_a_solver_that_solves_nothing_is_told_so() -> None:
    solvers.register(type("Nothing", (Solver,), {"name": "nothing"})())
    model = network()
    with pytest.raises(NotImplementedError, match=r"'nothing' defines neither direction\(\) nor solve\(\)"):
        train(model, lnb.LNB(model, 0.1, "paper", solver="nothing"), 1)
