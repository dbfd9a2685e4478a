"""``lnb demo``: LNB next to AdamW in under a minute, on data that comes with scikit-learn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lnb.cli.display import progress
from lnb.cli.errors import CommandError
from lnb.demo import comparison
from lnb.demo.comparison import GRIDS, NAMES, RATES, Curve


def run_demo(out: Path, seed: int, console: Console) -> None:
    """Run all scenes with every optimizer, print the closing table and draw the curves.

    Args:
        out: the picture, a file name that matplotlib can write.
        seed: of initial parameters and data order.
        console: where to show progress.

    Raises:
        CommandError: the picture cannot be written, or scikit-learn or matplotlib is not installed.
    """
    try:
        from lnb.demo.figure import check_writable, draw

        problems = [scene.problem() for scene in comparison.SCENES]
    except ModuleNotFoundError as error:
        raise CommandError(
            f"the demo needs the package {error.name!r}, which is not installed; "
            f"run: {sys.executable} -m pip install 'lnb-kernels[cli]'"
        ) from error
    check_writable(out)
    curves: dict[str, list[Curve]] = {}
    with one_thread(), progress(console) as bars:
        for scene, problem in zip(comparison.SCENES, problems, strict=True):
            for optimizer, name in NAMES.items():
                bar = bars.add_task(f"{scene.title}: {name}", total=scene.steps, figures="")
                for step, curve in comparison.run(scene, problem, optimizer, seed):
                    bars.update(bar, completed=step, figures=f"{curve.metric} {curve.values[-1]:.3g}")
                curves.setdefault(scene.title, []).append(curve)
    console.print(_table(curves))
    console.print(_how_rates_were_chosen(), soft_wrap=True, highlight=False)
    draw(out, comparison.SCENES, curves)
    console.print(f"curves: {out}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: models as small as these gain nothing from more, and lose much where a core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _table(curves: dict[str, list[Curve]]) -> Table:
    table = Table(title="LNB next to AdamW")
    table.add_column("task", no_wrap=True)
    table.add_column("optimizer", no_wrap=True)
    for header in ("at end", "target", "steps", "seconds"):
        table.add_column(header, justify="right")
    for scene in comparison.SCENES:
        for curve in curves[scene.title]:
            reached = curve.steps_to(scene.target)
            table.add_row(
                scene.title,
                curve.optimizer,
                show(curve, curve.values[-1]),
                show(curve, scene.target),
                "never" if reached is None else str(reached),
                f"{curve.seconds:.1f}",
            )
        table.add_section()
    return table


def show(curve: Curve, value: float) -> str:
    """A value of the curve's metric: per cent correct, or relative error."""
    return f"{value:.1%}" if curve.higher_is_better else f"{value:.1e}"


def _how_rates_were_chosen() -> str:
    grids = "; ".join(f"{NAMES[name]} {', '.join(map(str, grid))}" for name, grid in GRIDS.items())
    chosen = ", ".join(f"{task} {NAMES[name]} {lr}" for (task, name), lr in RATES.items())
    return (
        "Accuracy or relative error on the test data. Cosine schedule. The learning rate of LNB is the default, that of the "
        f"others the best of a grid, by the mean over three seeds ({grids}): {chosen}. "
        "On the matrix, LNB runs with its preset for losses without noise, full_batch."
    )
