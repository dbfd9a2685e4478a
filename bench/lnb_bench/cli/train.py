"""``lnb-bench train``: one run, live, kept on disk if asked, resumed after a kill."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from lnb.cli.display import progress
from lnb.cli.errors import WRONG_USE, fail, reported
from lnb_bench.cli.display import figures, follow, line
from lnb_bench.cli.errors import described_by, out_of_memory, unchecked_settings
from lnb_bench.cli.spec import RunSpec
from lnb_bench.training import Record, RunFolder, Trainer, TrainingError, train
from lnb_bench.training.lock import locked


def run_training(spec: RunSpec, out: Path | None, resume: bool, checkpoint_every: int, console: Console) -> None:
    """Make or resume the run ``spec`` and show it.

    Args:
        spec: the options that were given.
        out: the run's folder; None: nothing is kept.
        resume: continue the run in ``out``; starts it if the folder holds none yet.
        checkpoint_every: steps between two checkpoints.
        console: where to show progress.
    """
    if resume and out is None:
        raise fail("--resume needs --out, the folder of the run to continue", WRONG_USE)
    folder = None if out is None else RunFolder(out)
    continuing = resume and folder is not None and not folder.is_empty()
    if resume and not continuing and spec.task is None:
        raise fail(f"--resume: {out} holds no run to continue; to start one there, give --task", WRONG_USE)
    with ExitStack() as lock:
        with reported(TrainingError, ValueError, TypeError):
            if checkpoint_every < 1:
                raise ValueError(f"checkpoint_every={checkpoint_every} must be at least 1")
            if folder is not None and continuing:
                lock.enter_context(locked(folder.path))
                spec = spec.resuming(folder.read_description(), folder.description)
            elif folder is not None:
                folder.require_empty()
            with out_of_memory(), described_by(folder.description if folder is not None and continuing else None):
                task = spec.make_task()
                trainer = Trainer(task, spec.optimizer_config(), spec.loop_config(task))
        with (
            reported(TrainingError, interrupted=_how_to_continue(out)),
            out_of_memory(),
            unchecked_settings(spec.settings),
        ):
            if folder is not None and continuing:
                folder.rewind(trainer)
                folder.describe(spec.description())
                console.print(f"continuing {folder.path} at step {trainer.step}")
            elif folder is not None:
                lock.enter_context(locked(folder.path))
                folder.create(spec.description())
            last = _show(trainer, folder, checkpoint_every, console)
    if last is None:
        console.print(f"the run is complete: {trainer.step} steps")
    else:
        console.print(f"done: {figures(last)}, {last.seconds:.1f} s of training")
    if folder is None:
        console.print("nothing was kept; pass --out DIR to keep metrics and checkpoints")
    else:
        console.print(f"kept in {folder.path}: {folder.metrics.name}, {folder.checkpoint.name}, {folder.model.name}")


def _show(trainer: Trainer, folder: RunFolder | None, checkpoint_every: int, console: Console) -> Record | None:
    """Train to the end; returns the last evaluation."""
    last = None
    name = f"{trainer.task.name} · {trainer.optimizer_name}"
    steps = trainer.config.steps
    with progress(console) as bars:
        records = train(trainer, folder, checkpoint_every=checkpoint_every)
        for record in follow(records, bars, name, steps, done=trainer.step):
            if record.split == "test":
                last = record
                bars.console.print(line(record), highlight=False)
    return last


def _how_to_continue(out: Path | None) -> str:
    return "interrupted" if out is None else f"interrupted; continue with: lnb-bench train --resume --out {out}"
