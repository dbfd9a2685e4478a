"""The option ``--version`` of a command."""

from __future__ import annotations

from typing import Any

import typer


def version_option(command: str) -> Any:
    """``--version``: print the name and version of ``command`` and leave."""

    def print_version(wanted: bool) -> None:
        if wanted:
            import lnb_kernels

            typer.echo(f"{command} {lnb_kernels.__version__}")
            raise typer.Exit

    return typer.Option("--version", help="Print the version and leave.", callback=print_version, is_eager=True)
