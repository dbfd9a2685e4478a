"""The commands of ``lnb`` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lnb.cli.errors import CommandError, reported
from lnb.cli.settings import parse_settings

app = typer.Typer(
    name="lnb",
    help="Linear Neuron Boosting: see what it does for a model, and what it does here.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import lnb_kernels

        typer.echo(f"lnb {lnb_kernels.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Linear Neuron Boosting: see what it does for a model, and what it does here."""


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
def kernels() -> None:
    """Which kernel serves each operation on this machine, and why."""
    import lnb_kernels

    typer.echo(str(lnb_kernels.report()))
