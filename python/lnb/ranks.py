"""Data parallel training: the second moments of every rank's rows, added, as those of one batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import nn

from lnb.blocks import Block
from lnb.config import Config


def group_of(model: nn.Module, given: Any, config: Config) -> Any:
    """The ranks over which second moments are added; None for this process alone.

    Args:
        model: if it is a ``DistributedDataParallel``, its ranks are meant where none are given.
        given: the user's ``process_group``, or None.
        config: the settings. Those that work on kept inputs, or choose by each rank's own times, do not add up.

    Raises:
        TypeError: ``given`` is no process group.
        ValueError: the settings cannot work on several ranks.
    """
    if not dist.is_available() or not dist.is_initialized():
        if given is not None:
            raise ValueError(f"process_group={given!r} needs torch.distributed.init_process_group() to be called first")
        return None
    if given is not None and not isinstance(given, dist.ProcessGroup):
        raise TypeError(f"process_group={given!r} must be a torch.distributed.ProcessGroup, not {type(given).__name__}")
    group = given
    if group is None and isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    if group is None:
        if dist.get_world_size() > 1:
            warnings.warn(
                f"torch.distributed runs {dist.get_world_size()} ranks, and this LNB knows of one. If they train one model, "
                f"each would take steps of its own: build LNB on the DistributedDataParallel, or pass process_group",
                stacklevel=3,
            )
        return None
    if group.size() == 1:
        return None
    if config.keeps_inputs or (config.solver == "auto" and not config.factored):
        raise ValueError(
            f"solver={config.solver!r} uses inputs that stay on their rank, and process_group has {group.size()}: choose "
            f"'pcg', 'cholesky' or 'arrow'"
        )
    if config.max_overhead is not None:
        raise ValueError(
            f"max_overhead={config.max_overhead!r} chooses by each rank's own times, and process_group has {group.size()} "
            f"ranks that must choose alike: drop it, and set block_size, refresh_every or sample_every"
        )
    return group


def add_over_ranks(blocks: Iterable[Block], group: Any) -> None:
    """Add what the captures of ``blocks`` gathered over the ranks of ``group``.

    Every rank takes part with every probe that is switched on, with zeros for one that its backward passes did not reach:
    what is switched on depends on the step alone, so all ranks agree. A layer without a gradient is left without one.
    """
    pending = []
    for block in blocks:
        if not block.weight.requires_grad:
            continue
        for probe in (probe for capture in block.captures for probe in capture.live_probes()):
            total = probe.new_zeros(probe.shape) if probe.grad is None else probe.grad.contiguous()
            if block.weight.grad is not None:
                probe.grad = total
            pending.append((dist.all_reduce(total, group=group, async_op=True), total))
    for work, _ in pending:
        work.wait()
