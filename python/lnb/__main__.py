"""``lnb`` and ``python -m lnb``: the command line, which needs the extra ``cli``; ``lnb watch`` alone, the extra ``watch``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    try:
        import rich  # noqa: F401 - asked here whether both are there
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        extra = "watch" if sys.argv[1:2] == ["watch"] else "cli"
        sys.exit(
            f"lnb: the command line needs the package {error.name!r}, which is not installed; "
            f"run: {sys.executable} -m pip install 'lnb-kernels[{extra}]'"
        )
    from lnb.cli.app import app

    app()


if __name__ == "__main__":
    main()
