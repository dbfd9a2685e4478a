"""The options ``--threads`` and ``--clock`` of the benchmarks that count time."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from lnb_bench.study import CLOCKS, clock_of


def parse(parser: argparse.ArgumentParser, threads: int = 2) -> tuple[argparse.Namespace, Callable[[], float]]:
    """Add both options, read the command line, and put them into force: the arguments, and the clock."""
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    try:
        clock = clock_of(arguments.clock, arguments.threads)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(arguments.threads)
    return arguments, clock
