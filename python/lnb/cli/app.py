"""The commands of ``lnb`` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lnb.cli.errors import CommandError, reported
from lnb.cli.version import version_option
from lnb.config import DEFAULT_LR

app = typer.Typer(
    name="lnb",
    help="Linear Neuron Boosting: see what it does for a model, and how it compares with AdamW.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(version: Annotated[bool, version_option("lnb")] = False) -> None:
    """Linear Neuron Boosting: see what it does for a model, and how it compares with AdamW."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The picture of the curves.")] = Path("lnb-demo.png"),
    seed: Annotated[int, typer.Option(help="Seed of parameters and data order.")] = 0,
) -> None:
    """Run LNB next to AdamW: real digits, upright and inverted, then an ill-conditioned problem. No network."""
    from lnb.cli.demo import run_demo

    with reported(CommandError):
        run_demo(out, seed, Console())


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="MODULE:FUNCTION, which makes the model, such as my_package.models:build; or a class."
        ),
    ],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(DEFAULT_LR)}.")] = "fast",
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="What the model is called with, to predict times: a shape, such as 8,3,32,32 or 8,128:int64, for every "
            "positional argument; or MODULE:FUNCTION, which returns an argument, a tuple of them, or a dict of named ones.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A further setting, NAME=VALUE, such as max_overhead=0.05; repeatable."),
    ] = None,
) -> None:
    """Which metric every parameter of a model gets, what a step does for each layer, and what that costs."""
    from lnb.cli.plan import run_plan

    with reported(CommandError, ValueError, TypeError):
        run_plan(model, preset, input_ or [], set_ or [])


@app.command()
def watch(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The folder that a Watch logs to, its file, or a folder of them.")
    ],
    sort: Annotated[
        str, typer.Option(help="Which layers come first: model, gain, condition, rank, dead or age.")
    ] = "model",
    interval: Annotated[float, typer.Option(help="Seconds from one look at the file to the next.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the latest table and leave.")] = False,
) -> None:
    """Show gain, condition, rank and dead inputs, and refresh age of every layer while a model trains; Ctrl-C leaves."""
    from lnb.cli.watch import run_watch

    with reported(CommandError, ValueError):
        run_watch(path, interval, sort, once, Console())


@app.command()
def kernels() -> None:
    """Which kernel serves each operation on this machine, and why."""
    import lnb_kernels

    typer.echo(str(lnb_kernels.report()))
