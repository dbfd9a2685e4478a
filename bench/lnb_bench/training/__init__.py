"""Training runs as a library: tasks on real data, one loop for every optimizer, runs on disk that survive a kill.

A run::

    task = make_task("digits")
    trainer = Trainer(task, OptimizerConfig("lnb", lr=0.1), LoopConfig(steps=200))
    for record in train(trainer):
        print(record)
"""

from __future__ import annotations

from lnb_bench.training.errors import CheckpointError, DataError, Diverged, TrainingError
from lnb_bench.training.loop import LoopConfig, Trainer
from lnb_bench.training.optimizers import DEFAULT_LR, OPTIMIZERS, SCHEDULES, OptimizerConfig
from lnb_bench.training.records import Record
from lnb_bench.training.run_folder import RunFolder, train
from lnb_bench.training.tasks import MODELS, TASKS, Task, TaskOptions, make_task

__all__ = [
    "DEFAULT_LR",
    "MODELS",
    "OPTIMIZERS",
    "SCHEDULES",
    "TASKS",
    "CheckpointError",
    "DataError",
    "Diverged",
    "LoopConfig",
    "OptimizerConfig",
    "Record",
    "RunFolder",
    "Task",
    "TaskOptions",
    "Trainer",
    "TrainingError",
    "make_task",
    "train",
]
