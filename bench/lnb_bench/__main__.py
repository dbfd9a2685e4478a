"""``lnb-bench`` and ``python -m lnb_bench``: the command line of the benchmark harness."""

from __future__ import annotations

from lnb_bench.cli.app import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
