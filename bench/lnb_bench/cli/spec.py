"""What defines a training run: the options of ``lnb-bench train`` as one record that is kept with the run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnb.demo.batches import Batcher
from lnb_bench.training import LoopConfig, OptimizerConfig, Task, TaskOptions, TrainingError, make_task
from lnb_bench.training.records import shortened
from lnb_bench.training.run_folder import CHANGEABLE, LENGTH

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
    "dict[str, Any]": ((dict,), "a table"),
}


@dataclass(frozen=True)
class RunSpec:
    """The options of a run; None where none was given."""

    task: str | None = None
    optimizer: str | None = None
    model: str | None = None
    steps: int | None = None
    epochs: float | None = None
    lr: float | None = None
    weight_decay: float | None = None
    settings: dict[str, Any] | None = None
    seed: int | None = None
    batch_size: int | None = None
    schedule: str | None = None
    warmup: float | None = None
    clip_norm: float | None = None
    log_every: int | None = None
    evaluate_every: int | None = None
    invert: bool | None = None
    rescale: int | None = None
    same_start: bool | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None
    activation: str | None = None
    context: int | None = None
    size: int | None = None
    condition: float | None = None
    augment: bool | None = None
    rank: int | None = None
    frequency: int | None = None
    data: str | None = None
    device: str | None = None

    def description(self) -> dict[str, Any]:
        """The options that were given, for JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def resuming(self, description: dict[str, Any], where: Path) -> RunSpec:
        """The spec of the kept run ``description``, with the options of ``self`` that may change.

        Raises:
            TrainingError: an option contradicts the kept run, or the description has an unknown entry.
        """
        known = {entry.name: str(entry.type).removesuffix(" | None") for entry in dataclasses.fields(self)}
        for name, value in description.items():
            if name not in known:
                raise TrainingError(
                    f"{where}: unknown entry {shortened(name)}; the file is damaged, or made by another version of lnb"
                )
            types, wanted = _TYPES[known[name]]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise TrainingError(f"{where}: {name}={shortened(value)} must be {wanted}; correct the file")
        changes = {}
        for name, value in self.description().items():
            kept = description.get(name)
            if value == kept:
                continue
            if name not in CHANGEABLE:
                has = "its default" if kept is None else repr(kept)
                raise TrainingError(
                    f"{name}={value!r} contradicts the run to resume, which has {has} ({where}); leave the option out, "
                    f"or choose another --out"
                )
            if name in LENGTH and description.get("schedule", "constant") != "constant":
                raise TrainingError(
                    f"{name}={value!r}: the length of a run with the schedule {description['schedule']} cannot change"
                )
            changes[name] = value
        if any(name in changes for name in LENGTH):
            changes = {**dict.fromkeys(LENGTH), **changes}
        return dataclasses.replace(RunSpec(**description), **changes)

    def make_task(self) -> Task:
        """The run's task.

        Raises:
            ValueError: an option is not allowed.
            DataError: a data file is missing or damaged.
        """
        if self.task is None:
            raise ValueError("--task is missing (only --resume can do without)")
        chosen = {entry.name for entry in dataclasses.fields(TaskOptions) if entry.init} & set(self.description())
        options: dict[str, Any] = {name: getattr(self, name) for name in chosen}
        if self.data is not None:
            options["data"] = Path(self.data)
        return make_task(self.task, TaskOptions(**options))

    def optimizer_config(self) -> OptimizerConfig:
        """The run's optimizer (default: ``lnb``)."""
        return OptimizerConfig(
            self.optimizer or "lnb", self.lr, self.weight_decay, self.settings or {}, self.warmup or 0.0
        )

    def loop_config(self, task: Task) -> LoopConfig:
        """The run's length and manner; epochs are turned into steps.

        Raises:
            ValueError: an option is not allowed.
        """
        names = ("batch_size", "seed", "schedule", "clip_norm", "log_every", "evaluate_every", "device")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return LoopConfig(steps=self._steps(task), **given)

    def _steps(self, task: Task) -> int:
        if self.epochs is None:
            return task.steps if self.steps is None else self.steps
        if self.steps is not None:
            raise ValueError("--steps and --epochs exclude each other: give one of them")
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ValueError(f"epochs={self.epochs!r} must be above 0")
        batch_size = task.batch_size if self.batch_size is None else self.batch_size
        steps = self.epochs * Batcher(len(task.train), batch_size, seed=0).per_epoch
        if steps >= 2**63:
            raise ValueError(f"epochs={self.epochs!r} makes more than 2**63 steps")
        return max(1, round(steps))
