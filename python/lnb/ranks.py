"""Data parallel training: the second moments of every rank's rows, added, as those of one batch.

Ranks train one model together if all of them take the same steps, so none may step alone unseen. Which ranks these are is
known from the user, from a ``DistributedDataParallel`` that holds the parameters, or is an error (:class:`Ranks`). Every step
then has one exchange (:func:`add_over_ranks`), in which also a rank takes part that cannot make the step: no rank makes it then.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lnb.blocks import Block
from lnb.config import Config

_ALIGNED = 32  # entries: every part of the buffer starts where vector loads like it


class Joint:
    """Ranks that have whole copies of the model, and different samples."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def add(self, blocks: list[Block], device: torch.device) -> Tensor:
        """The exchange before a step (:func:`add_over_ranks`)."""
        return add_over_ranks(blocks, [self.group], device)

    def leave(self, blocks: list[Block], device: torch.device, seen_by_host: bool) -> None:
        """Take part in the exchange of a step that this rank cannot make.

        Args:
            blocks: the layers that this optimizer moves.
            device: of the model.
            seen_by_host: whether the other ranks' hosts wait to know that.
        """
        add_over_ranks(blocks, [self.group], device, failed=True)


class Ranks:
    """Which ranks train the model together.

    Args:
        given: a ``ProcessGroup``; None for this process alone; ``"auto"`` for those of the ``DistributedDataParallel`` that holds
            the model's parameters at the first step, also where it was made after the optimizer.
        model: what is trained.
        config: the settings. Those that work on kept inputs, or choose by each rank's own times, do not add up.

    Raises:
        TypeError: ``given`` is none of these.
        ValueError: the settings cannot work on several ranks.
    """

    def __init__(self, given: Any, model: nn.Module, config: Config) -> None:
        self._given = given
        self._config = config
        self._found: tuple[Any] | None = None  # once it is known
        named = given is not None and given != "auto"
        if named and not _is_running():
            raise ValueError(f"process_group={given!r} needs torch.distributed.init_process_group() to be called first")
        if named and not isinstance(given, dist.ProcessGroup):
            raise TypeError(
                f"process_group={given!r} must be a torch.distributed.ProcessGroup, 'auto' or None, not {type(given).__name__}"
            )
        if named or (given is not None and isinstance(model, DistributedDataParallel)):
            self.group(model)

    @property
    def given(self) -> Any:
        """What the user said."""
        return self._given

    def joint(self, model: nn.Module) -> Joint | None:
        """The ranks with which steps are taken, as :meth:`group` finds them."""
        group = self.group(model)
        return None if group is None else Joint(group)

    def group(self, model: nn.Module) -> Any:
        """The group over which steps are taken; None for this process alone.

        Raises:
            RuntimeError: there are several ranks, and it cannot be known whether they train the model together.
            ValueError: the settings cannot work on several ranks.
        """
        if self._given is None or not _is_running():
            return None
        if self._found is None:
            group = _wrappers_group(model) if isinstance(self._given, str) else self._given
            if group is not None and group.size() == 1:
                group = None
            if group is not None:
                require_joint(self._config, group.size())
            self._found = (group,)
        return self._found[0]

    def __getstate__(self) -> dict[str, Any]:
        """Process groups are not copied: a copy finds its own."""
        return {"_given": None if self._given is None else "auto", "_config": self._config, "_found": None}


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()


def _wrappers_group(model: nn.Module) -> Any:
    """The group of the ``DistributedDataParallel`` around or inside ``model``."""
    if isinstance(model, DistributedDataParallel):
        return model.process_group
    ranks = dist.get_world_size()
    if ranks == 1:
        return None
    parameters = set(model.parameters())
    # Trainers build the optimizer first and wrap the model afterwards, perhaps inside another module: the model does not
    # know its wrapper. This looks through all objects, once.
    wrappers = [found for found in gc.get_objects() if issubclass(type(found), DistributedDataParallel)]
    groups = [wrapper.process_group for wrapper in wrappers if not parameters.isdisjoint(wrapper.parameters())]
    if not groups or any(group is not groups[0] for group in groups):
        known = "no DistributedDataParallel holds" if not groups else "DistributedDataParallels of several groups hold"
        raise RuntimeError(
            f"process_group='auto': torch.distributed runs {ranks} ranks, and {known} the parameters of this model, so LNB "
            f"cannot know which ranks train it together; each would drift away by steps of its own. Pass "
            f"process_group=torch.distributed.group.WORLD (or the group over which gradients are averaged), or "
            f"process_group=None if this process trains the model alone. Nothing was changed"
        )
    return groups[0]


def require_joint(config: Config, ranks: int) -> None:
    """Require settings that several ranks can share."""
    if config.keeps_inputs or config.undecided:
        raise ValueError(
            f"solver={config.solver!r} uses inputs that stay on their rank, and process_group has {ranks}: choose "
            f"'pcg', 'cholesky' or 'arrow'"
        )
    if config.max_overhead is not None:
        raise ValueError(
            f"max_overhead={config.max_overhead!r} chooses by each rank's own times, and process_group has {ranks} "
            f"ranks that must choose alike: drop it, and set block_size, refresh_every or sample_every"
        )


def fill_missing(blocks: Iterable[Block]) -> None:
    """Note zeros for layers that have a gradient, made of other ranks' rows, and that no backward pass of this rank reached."""
    for _, probe in _live_probes(block for block in blocks if block.weight.grad is not None):
        if probe.grad is None:
            probe.grad = probe.new_zeros(probe.shape)


def add_over_ranks(
    blocks: Iterable[Block],
    groups: Iterable[Any],
    device: torch.device,
    failed: bool | Tensor = False,
    counts: bool = True,
) -> Tensor:
    """Add what the captures of ``blocks`` gathered over the ranks of ``groups``, by one reduction in each.

    Every rank takes part with every probe that is switched on, with zeros for one that its backward passes did not reach:
    what is switched on depends on the step alone, so all ranks agree. A layer without a gradient is left without one.

    Args:
        blocks: the layers that this optimizer moves.
        groups: the ranks; of several, sums over one are added over the next.
        device: of the model.
        failed: this rank cannot make the step, a bool or a tensor ``[]``.
        counts: whether its samples are its own; what ranks with the same samples gather counts once.

    Returns:
        ``[1]``: finite, or NaN if a rank cannot make the step. The host does not wait for it.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Block, Tensor]]] = {}
    for block, probe in _live_probes(block for block in blocks if block.weight.requires_grad):
        kinds.setdefault((probe.device, probe.dtype), []).append((block, probe))
    kinds = kinds or {(device, torch.float32): []}
    flag: Tensor | None = None
    for (where, dtype), probes in kinds.items():
        lengths = [-(-probe.numel() // _ALIGNED) * _ALIGNED for _, probe in probes]
        buffer = torch.zeros(sum(lengths) + 1, dtype=dtype, device=where)
        *parts, own_flag = buffer.split([*lengths, 1])
        totals = [part[: probe.numel()].view(probe.shape) for part, (_, probe) in zip(parts, probes, strict=True)]
        seen = [(total, probe.grad) for total, (_, probe) in zip(totals, probes, strict=True) if probe.grad is not None]
        if seen and counts:
            torch._foreach_copy_([total for total, _ in seen], [gradient for _, gradient in seen])
        if isinstance(failed, Tensor):
            own_flag.masked_fill_(failed.to(where), math.nan)
        elif failed:
            own_flag.fill_(math.nan)
        for group in groups:
            dist.all_reduce(buffer, group=group)
        for total, (block, probe) in zip(totals, probes, strict=True):
            if block.weight.grad is not None:
                probe.grad = total
        flag = own_flag if flag is None else flag
    assert flag is not None
    return flag


def _live_probes(blocks: Iterable[Block]) -> Iterator[tuple[Block, Tensor]]:
    for block in blocks:
        for capture in block.captures:
            for probe in capture.live_probes():
                yield block, probe
