"""A run on disk: its description, its metric series, its checkpoint, its final model."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lnb.reading import parse_json, read_text, reason
from lnb_bench.training.checkpoint import load_checkpoint, save_checkpoint
from lnb_bench.training.errors import CheckpointError, TrainingError
from lnb_bench.training.files import remove_leftovers, write_atomically
from lnb_bench.training.loop import Trainer
from lnb_bench.training.metric_series import MetricSeries
from lnb_bench.training.records import Record, shortened
from lnb_bench.training.state_check import check_state
from lnb_bench.training.structure import same_value

LENGTH = ("steps", "epochs")
# Entries of the description that may differ when a run is resumed: they say where and how long, not what. The length of a
# run with a schedule may not.
CHANGEABLE = ("data", "device", *LENGTH)


class RunFolder:
    """The folder of one run. Files: ``run.json``, ``metrics.jsonl``, ``checkpoint.lnb``, and ``model.pt`` at the end.

    Args:
        path: the folder; :meth:`create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description, self.metrics = path / "run.json", path / "metrics.jsonl"
        self.checkpoint, self.model = path / "checkpoint.lnb", path / "model.pt"
        self._described: dict[str, Any] | None = None  # goes into the checkpoints

    def is_empty(self) -> bool:
        """Whether the folder holds no run, or does not exist."""
        return not self._found()

    def require_empty(self) -> None:
        """Require that the folder holds no run.

        Raises:
            TrainingError: it does.
        """
        if self._found():
            raise TrainingError(
                f"{self.path}: holds another run ({', '.join(self._found())}); continue it with --resume, or choose "
                f"another --out"
            )

    def _found(self) -> list[str]:
        files = (self.description, self.metrics, self.checkpoint, self.model)
        return [file.name for file in files if os.path.lexists(file)]  # a link that leads nowhere is found too

    def create(self, description: dict[str, Any]) -> None:
        """Make the folder and write the run's description.

        Raises:
            TrainingError: it holds a run already, or cannot be written.
        """
        self.require_empty()
        self.describe(description)

    def describe(self, description: dict[str, Any]) -> None:
        """Write the run's description, in place of the one that may be there.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.description, (json.dumps(description, indent=2) + "\n").encode())
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        self._described = json.loads(json.dumps(description))  # as it is read back: with lists for tuples

    def read_description(self) -> dict[str, Any]:
        """What :meth:`create` wrote.

        Raises:
            TrainingError: there is no run here, or its description is damaged.
        """
        try:
            description = parse_json(read_text(self.description))
        except FileNotFoundError as error:
            raise TrainingError(
                f"{self.description}: no such file, so there is no run to resume in {self.path}"
            ) from error
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{self.description}: cannot be read ({reason(error)}); restore it from a copy, or start anew in another --out"
            ) from error
        if not isinstance(description, dict):
            raise TrainingError(f"{self.description}: holds {type(description).__name__}, not the description of a run")
        return description

    def append(self, record: Record) -> None:
        """Add a line to the metric series; it outlives a kill of the process, and a power failure once :meth:`save` ran.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(record)) + "\n")
        except OSError as error:
            raise self._cannot_append(error) from error

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint, after the metric series has reached the disk: a resumed series has no gaps.

        Raises:
            CheckpointError: the checkpoint cannot be written; the one before it is intact.
            TrainingError: the series cannot be written.
        """
        try:
            with self.metrics.open("a") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise self._cannot_append(error) from error
        state = trainer.state_dict()
        if self._described is not None:
            state["run"] = self._described
        save_checkpoint(self.checkpoint, state)

    def _cannot_append(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"{self.metrics}: cannot be written ({error.strerror or error}). Make room, then go on with --resume"
        )

    def records(self) -> Iterator[Record]:
        """The metric series; a last line that a kill cut off is left out.

        Raises:
            TrainingError: the series cannot be read, a line is damaged, or lines are not in the order of training.
        """
        return (record for _, record in MetricSeries(self.metrics).numbered())

    def rewind(self, trainer: Trainer) -> None:
        """Bring ``trainer`` to the checkpoint (to the start if there is none yet) and drop the records after it.

        Raises:
            CheckpointError: the checkpoint is damaged or of another run, or is missing though the run had ended.
            TrainingError: the metric series is damaged, has gaps or cannot be written.
        """
        remove_leftovers(self.path)
        position = -1
        if os.path.lexists(self.checkpoint):
            state = load_checkpoint(self.checkpoint, trainer.device)
            try:
                check_state(state, trainer.state_dict())
                self._check_description(state)
                trainer.load_state_dict(state)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{self.checkpoint}: {error}; restore it from a copy, or start the run anew in another --out"
                ) from error
            position = trainer.step
        elif os.path.lexists(self.model):
            raise CheckpointError(
                f"{self.checkpoint}: no such file, although the run has ended ({self.model.name} is there); restore it from "
                f"a copy, or start the run anew in another --out"
            )
        kept = MetricSeries(self.metrics).until(position, trainer)
        try:
            lines = [json.dumps(dataclasses.asdict(record)) + "\n" for record in kept]
            write_atomically(self.metrics, "".join(lines).encode())
        except OSError as error:
            raise TrainingError(f"{self.metrics}: cannot be written ({error.strerror or error})") from error

    def _check_description(self, state: dict[str, Any]) -> None:
        """Require that the run's description is the one that the checkpoint was made under."""
        made_under = state.get("run")
        if not isinstance(made_under, dict):
            return
        description = self.read_description()
        constant = made_under.get("schedule", "constant") == "constant"
        for name in dict.fromkeys([*made_under, *description]):
            may_change = name in CHANGEABLE and (constant or name not in LENGTH)
            if not may_change and not same_value(made_under.get(name), description.get(name)):
                raise CheckpointError(
                    f"{name} is {shortened(made_under.get(name))} in the checkpoint and {shortened(description.get(name))} "
                    f"in {self.description}"
                )


def train(trainer: Trainer, folder: RunFolder | None = None, *, checkpoint_every: int = 100) -> Iterator[Record]:
    """Train to the end of the run; with a ``folder``, keep the records and checkpoints there.

    Args:
        trainer: fresh, or brought to a checkpoint by :meth:`RunFolder.rewind`.
        folder: where the run lives; None for a run in memory.
        checkpoint_every: steps between two checkpoints, >= 1; the last step is always one.

    Yields:
        The run's records, as they are made.

    Raises:
        Diverged: the loss is not finite.
        TrainingError: a file cannot be written.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every!r} must be at least 1")
    if folder is None:
        yield from trainer.records()
        return

    def save() -> None:
        if trainer.step % checkpoint_every == 0 or trainer.step == trainer.config.steps:
            folder.save(trainer)

    for record in trainer.records(after_step=save):
        folder.append(record)
        yield record
    save_model(folder.model, trainer)


def save_model(path: Path, trainer: Trainer) -> None:
    """Write the model's parameters as a plain ``torch.save`` of its ``state_dict``.

    Raises:
        TrainingError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(trainer.model.state_dict(), buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror or error})") from error
