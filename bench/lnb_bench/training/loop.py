"""The one training loop: a stream of metric records, which may be stopped at any step and resumed bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lnb.demo.batches import Batcher
from lnb_bench.training.errors import CheckpointError, Diverged
from lnb_bench.training.optimizers import OptimizerConfig, build_optimizer
from lnb_bench.training.records import Record
from lnb_bench.training.state_check import check_state
from lnb_bench.training.tasks import Task

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class LoopConfig:
    """How long and how a run trains.

    Attributes:
        steps: number of optimizer steps, >= 1.
        batch_size: examples per step; None for the task's default.
        seed: of the initial parameters and the data order.
        schedule: ``"constant"`` or ``"cosine"``.
        clip_norm: gradients are scaled down to this global norm; None: never.
        log_every: a training record is made every so many steps, with the mean loss of these.
        evaluate_every: the test split is evaluated every so many steps; None: once per epoch, but not
            more often than ``log_every``. Step 0 and the last step are always evaluated.
        device: where the model lives.
    """

    steps: int
    batch_size: int | None = None
    seed: int = 0
    schedule: str = "constant"
    clip_norm: float | None = None
    log_every: int = 10
    evaluate_every: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
            if value is not None and value >= 2**63:
                raise ValueError(f"{name}={value!r} must be below 2**63")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r} must be in [-2**63, 2**63)")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm!r} must be above 0")


class Trainer:
    """A model, its optimizer and the position in the run.

    Args:
        task: data, model and objective.
        optimizer: which optimizer.
        config: length, seed and the rest.
        clock: what ``seconds`` are read from; ``time.process_time`` on one thread is not disturbed by other processes.

    Raises:
        ValueError: a setting is not allowed.
    """

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerConfig,
        config: LoopConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.task, self.config, self.optimizer_name = task, config, optimizer.name
        self._identity = {
            "task": task.name,
            "optimizer": optimizer.name,
            "seed": config.seed,
            "schedule": config.schedule,
            "lr": optimizer.rate,
            "weight_decay": optimizer.weight_decay,
            "settings": _described(optimizer.settings),
            "warmup": optimizer.warmup,
            "clip_norm": config.clip_norm,
        }
        self.device = _usable(config.device)
        torch.manual_seed(config.seed)
        self.model: nn.Module = task.build().to(self.device)
        self.optimizer = build_optimizer(optimizer, self.model, config.schedule, config.steps)
        self.batcher = Batcher(len(task.train), config.batch_size or task.batch_size, config.seed)
        self.step = 0
        self.seconds = 0.0
        self._clock = clock
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss_count = 0

    def train_step(self) -> None:
        """Make one optimizer step."""
        inputs, targets = self.task.train.batch(self.batcher.indices(self.step), self.device)
        self.optimizer.zero_grad()
        loss = self.task.objective.loss(self.model(inputs), targets)
        loss.backward()
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self._loss_sum += loss.detach()
        self._loss_count += 1
        self.step += 1

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The figures of merit on the test split."""
        objective, split = self.task.objective, self.task.test
        self.model.eval()
        sums = []
        with self.optimizer.evaluating():
            for start in range(0, len(split), EVALUATION_BATCH):
                indices = torch.arange(start, min(start + EVALUATION_BATCH, len(split)))
                inputs, targets = split.batch(indices, self.device)
                sums.append(objective.sums(self.model(inputs), targets))
        self.model.train()
        return objective.summary(torch.stack(sums).sum(0).cpu())

    def records(self, after_step: Callable[[], None] | None = None) -> Iterator[Record]:
        """Train to the end of the run, from wherever it stands.

        Args:
            after_step: called after every step, when all records of the step have been taken: the moment to save.

        Raises:
            Diverged: the training loss is not finite; at most ``log_every`` steps after it happened.
        """
        config = self.config
        if self.step == 0:
            yield self._record("test", self.evaluate())
        while self.step < config.steps:
            started = self._clock()
            self.train_step()
            last = self.step == config.steps
            values = self._training_values() if last or self.step % config.log_every == 0 else None
            self.seconds += self._clock() - started
            if values is not None:
                yield self._record("train", values)
            if last or self.step % self.evaluate_every == 0:
                yield self._record("test", self.evaluate())
            if after_step is not None:
                after_step()

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return self.config.evaluate_every or max(self.batcher.per_epoch, self.config.log_every)

    def planned_records(self, until: int) -> Iterator[tuple[int, str]]:
        """Step and split of every record that a run of any length has made when it has made ``until`` steps."""
        yield 0, "test"
        for step in range(1, until + 1):
            if step % self.config.log_every == 0:
                yield step, "train"
            if step % self.evaluate_every == 0:
                yield step, "test"

    def _training_values(self) -> dict[str, float]:
        loss = float(self._loss_sum) / self._loss_count
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {self.step}: the run has diverged; lower the learning rate")
        self._loss_sum.zero_()
        self._loss_count = 0
        return {"loss": loss, "lr": self.optimizer.lr}

    def _record(self, split: str, values: dict[str, float]) -> Record:
        return Record(self.step, self.step / self.batcher.per_epoch, split, values, self.seconds)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on: tensors, numbers and strings only.

        Model, optimizers, schedules, torch's random state, the position in the data order, and the open loss mean.
        """
        accelerators = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        return {
            "identity": self._identity,
            "order": self._order(),
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": accelerators},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; nothing changes if it does not fit.

        Raises:
            CheckpointError: it is of another task, optimizer, setting, model or data order, or not whole; the message says
                what differs.
        """
        check_state(state, self.state_dict())
        before = copy.deepcopy(self.state_dict())
        try:
            self._apply(state)
        except Exception as error:  # an optimizer can raise anything at a state that is not its own
            self._apply(before)
            raise CheckpointError(f"the checkpoint does not fit this run: {error}") from error

    def _apply(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_state_dict(state["model"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_count = state["loss_count"]
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if self.device.type == "cuda" and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all([random.cpu() for random in state["random"]["cuda"]])

    def _order(self) -> dict[str, int]:
        """What decides the data order, besides the step."""
        return {"examples": self.batcher.examples, "batch_size": self.batcher.batch_size}


def _described(settings: dict[str, Any]) -> str:
    """The settings as text, the same for a tuple and for the list that a description in JSON makes of it."""
    return repr(sorted((name, list(value) if isinstance(value, tuple) else value) for name, value in settings.items()))


def _usable(name: str) -> torch.device:
    """The device ``name``, if this machine has it."""
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={name!r} cannot be used here: {reason}") from error
    return device
