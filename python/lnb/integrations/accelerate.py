"""LNB with accelerate's ``Accelerator``.

    from lnb.integrations.accelerate import prepare

    accelerator = Accelerator(gradient_accumulation_steps=4)
    model, optimizer, loader, scheduler = prepare(accelerator, model, loader, lr=0.4, schedule=make_scheduler)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()  # last: before backward() it would drop the micro-batches so far

``accelerator.prepare(model, lnb.LNB(model), loader)`` does the same. Either way LNB is built from the model before accelerate
wraps it, and finds the ``DistributedDataParallel`` around its parameters at the first step. Micro-batches add their samples to
one second moment. ``save_state`` and ``load_state`` resume a run bit for bit on one number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lnb.optimizer import LNB


def prepare(
    accelerator: Any, model: nn.Module, *others: Any, schedule: Callable[[LNB], Any] | None = None, **settings: Any
) -> tuple[Any, ...]:
    """``accelerator.prepare`` for a model, an LNB of it, and whatever else there is.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        model: not prepared yet.
        others: loaders and the like.
        schedule: makes the scheduler of the optimizer; accelerate steps it once for every process.
        settings: what :class:`lnb.LNB` takes beside the model.

    Returns:
        The prepared model, optimizer and ``others``, and at last the scheduler where there is one.

    Raises:
        TypeError, ValueError: what :class:`lnb.LNB` raises for its arguments.
    """
    optimizer = LNB(model, **settings)
    schedulers = () if schedule is None else (schedule(optimizer),)
    return tuple(accelerator.prepare(model, optimizer, *others, *schedulers))
