"""The commands of ``lnb-bench``, called in the tests' own process."""

from __future__ import annotations

from typer.testing import CliRunner

from lnb_bench.cli.app import app


def invoke(*arguments: object, code: int = 0) -> str:
    """Run a command, which must end with ``code`` and without a traceback; its output, the whitespace joined."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return " ".join(result.output.split())
