"""Peak memory of training, from torch's own record of every allocation: exact, and the same on a busy machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from lnb_bench.training import LoopConfig, OptimizerConfig, Task, Trainer

STEPS = 12  # LNB refreshes, and SOAP turns its bases, in every tenth step


def training_peak(task: Task, optimizer: OptimizerConfig, config: LoopConfig) -> int:
    """Most bytes live at one time in the first steps of a run on the CPU: model, gradients, state, activations, batch.

    The data set and the evaluations are not part of it. Learning rate and seed make no difference.
    """

    def train() -> None:
        trainer = Trainer(task, optimizer, config)
        for _ in range(min(STEPS, config.steps)):
            trainer.train_step()

    return peak_bytes(train)


def peak_bytes(run: Callable[[], None]) -> int:
    """Most bytes live at one time of those that ``run`` allocates through torch's CPU allocator, inside operators too."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes lines of its own to the error stream
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # The raw events: the profiler's own tables take minutes for a run with many of them.
    recorded: list[Any] = profiler.profiler.kineto_results.events()
    changes = [(event.start_ns(), i, event.nbytes()) for i, event in enumerate(recorded) if event.name() == "[memory]"]
    live = peak = 0
    for _, _, change in sorted(changes):
        live += change
        peak = max(peak, live)
    return peak
