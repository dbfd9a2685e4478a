"""Regression on tables: inputs and target standardised, so that the relative error is the root of the unexplained variance."""

from __future__ import annotations

from functools import partial

from lnb_bench.training import data
from lnb_bench.training.data.splits import VectorSplit
from lnb_bench.training.models import MLP
from lnb_bench.training.objectives import LeastSquares
from lnb_bench.training.tasks.base import Task, TaskOptions, choose


def _task(
    name: str, options: TaskOptions, splits: tuple[VectorSplit, VectorSplit], batch_size: int, steps: int
) -> Task:
    choose(options, name, ("mlp",))
    train, test = splits
    chosen = options.take("width", "depth", "activation", width=64, depth=3, activation="relu")
    build = partial(MLP, train.inputs.shape[1], 1, **chosen)
    return Task(name, train, test, build, LeastSquares(), batch_size, steps)


def diabetes(options: TaskOptions) -> Task:
    """The progress of diabetes after a year from ten measurements of a patient."""
    return _task("diabetes", options, data.load_diabetes(), batch_size=64, steps=200)


def diamonds(options: TaskOptions) -> Task:
    """The log of a diamond's price from its measures and grades."""
    return _task("diamonds", options, data.load_diamonds(options.data), batch_size=256, steps=1680)
