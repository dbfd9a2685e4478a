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

from lnb.training.checkpoint import load_checkpoint, save_checkpoint
from lnb.training.errors import TrainingError
from lnb.training.files import write_atomically
from lnb.training.loop import Record, Trainer


class RunFolder:
    """The folder of one run. Files: ``run.json``, ``metrics.jsonl``, ``checkpoint.lnb``, and ``model.pt`` at the end.

    Args:
        path: the folder; :meth:`create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description, self.metrics = path / "run.json", path / "metrics.jsonl"
        self.checkpoint, self.model = path / "checkpoint.lnb", path / "model.pt"

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
        return [file.name for file in (self.description, self.metrics, self.checkpoint, self.model) if file.exists()]

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

    def read_description(self) -> dict[str, Any]:
        """What :meth:`create` wrote.

        Raises:
            TrainingError: there is no run here, or its description is damaged.
        """
        try:
            description = json.loads(self.description.read_text())
        except FileNotFoundError as error:
            raise TrainingError(
                f"{self.description}: no such file, so there is no run to resume in {self.path}"
            ) from error
        except (OSError, ValueError) as error:
            raise TrainingError(f"{self.description}: cannot be read ({error})") from error
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
        save_checkpoint(self.checkpoint, trainer.state_dict())

    def _cannot_append(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"{self.metrics}: cannot be written ({error.strerror or error}). Make room, then go on with --resume"
        )

    def records(self) -> Iterator[Record]:
        """The metric series; a last line that a kill cut off is left out.

        Raises:
            TrainingError: a line before the last is damaged.
        """
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            record = self._parse(line, number, last=number == len(lines))
            if record is not None:
                yield record

    def _parse(self, line: str, number: int, last: bool) -> Record | None:
        try:
            return Record(**json.loads(line))
        except (ValueError, TypeError) as error:
            if last:
                return None
            raise TrainingError(f"{self.metrics}: line {number} is damaged ({error}); repair or remove it") from error

    def rewind(self, trainer: Trainer) -> None:
        """Bring ``trainer`` to the checkpoint (to the start if there is none yet) and drop the records after it.

        Raises:
            CheckpointError: the checkpoint is damaged or of another run.
            TrainingError: the metric series is damaged or cannot be written.
        """
        for leftover in self.path.glob(".*.tmp"):  # of a kill between write and rename
            leftover.unlink(missing_ok=True)
        position = -1
        if self.checkpoint.exists():
            trainer.load_state_dict(load_checkpoint(self.checkpoint, trainer.device))
            position = trainer.step
        kept = [json.dumps(dataclasses.asdict(record)) + "\n" for record in self.records() if record.step <= position]
        try:
            write_atomically(self.metrics, "".join(kept).encode())
        except OSError as error:
            raise TrainingError(f"{self.metrics}: cannot be written ({error.strerror or error})") from error


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
