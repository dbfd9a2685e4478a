"""Language: Tiny Shakespeare by characters."""

from __future__ import annotations

from functools import partial

from lnb_bench.training import data
from lnb_bench.training.models import GPT
from lnb_bench.training.objectives import NextToken
from lnb_bench.training.tasks.base import Task, TaskOptions, choose


def shakespeare(options: TaskOptions) -> Task:
    choose(options, "shakespeare", ("gpt",))
    train, test, vocabulary = data.load_shakespeare(options.data, **options.take("context"))
    build = partial(GPT, vocabulary, **options.take("context", "width", "depth", "heads"))
    return Task("shakespeare", train, test, build, NextToken(), batch_size=32, steps=500)
