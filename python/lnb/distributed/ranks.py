"""Data parallel training: the second moments of all ranks' samples are added up, as those of one batch.

Ranks train one model together if all of them take the same steps, so no rank may step unnoticed by the others. Which ranks
these are is known from the user, from a ``DistributedDataParallel`` that holds the parameters, or is an error (:class:`Ranks`).
Every step then has one exchange (:mod:`lnb.distributed.exchange`). A rank that cannot make the step takes part too; then no
rank makes it. Where ``DistributedDataParallel`` tells which backward pass is the last, second moments are added while it adds
gradients.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lnb.config import Config
from lnb.distributed.exchange import MomentExchange
from lnb.distributed.identity import Identity
from lnb.layers.claimed import Layer


class Joint:
    """Ranks that have whole copies of the model, and different samples.

    Args:
        group: the ranks.
        wrapper: whose backward passes end with the exchange of gradients; None where nothing tells.
        exchange: of the optimizer.
        shares_refresh: whether refreshes are shared out.

    Attributes:
        sharers: the ranks over which refreshes are shared out; None where every rank makes all of them.
    """

    def __init__(
        self, group: Any, wrapper: DistributedDataParallel | None, exchange: MomentExchange, shares_refresh: bool
    ) -> None:
        self.group = group
        self._exchange = exchange
        # Only where all ranks must reach all parameters do all of them begin the same exchanges.
        self._wrapper = None if wrapper is None or wrapper.find_unused_parameters or wrapper.static_graph else wrapper
        self._watched: dict[nn.Parameter, Any] = {}
        self._graph = -1  # of the backward pass whose end is waited for
        exchange.early = self._wrapper is not None
        self.sharers = group if shares_refresh else None

    def follow(self, layers: list[Layer]) -> None:
        """Notice backward passes by the weights of these layers; reentrant checkpoints count as passes of their own."""
        moving = {layer.weight for layer in layers if layer.weight.requires_grad}
        wanted = moving if self._wrapper is not None else set()
        for parameter in self._watched.keys() - wanted:
            self._watched.pop(parameter).remove()
        me = weakref.ref(self)

        def watch(parameter: Tensor) -> None:
            joint, graph = me(), torch._C._current_graph_task_id()
            if joint is not None and joint._graph != graph:
                joint._graph = graph
                torch.autograd.Variable._execution_engine.queue_callback(joint._note_pass)

        for parameter in wanted - self._watched.keys():
            self._watched[parameter] = parameter.register_post_accumulate_grad_hook(watch)

    def _note_pass(self) -> None:
        """After a backward pass, when the wrapper has begun to add gradients, before it waits for them."""
        assert self._wrapper is not None
        self._graph = -1
        with torch.no_grad():
            self._exchange.note_pass([self.group] if self._wrapper.require_forward_param_sync else None)

    def add(self, layers: list[Layer], device: torch.device, identity: Identity) -> Tensor:
        """The exchange before a step (:meth:`lnb.distributed.exchange.MomentExchange.add`)."""
        return self._exchange.add(layers, [self.group], self.group.size(), device, identity)

    def leave(self, layers: list[Layer], device: torch.device, identity: Identity, seen_by_host: bool) -> None:
        """Take part in the exchange of a step that this rank cannot make.

        Args:
            layers: the layers that this optimizer moves.
            device: of the model.
            identity: of this rank's model, settings, rates and step.
            seen_by_host: whether the other ranks' hosts wait to know that.
        """
        self._exchange.add(layers, [self.group], self.group.size(), device, identity, failed=True)


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
        self._found: tuple[Any, DistributedDataParallel | None] | None = None  # once it is known
        self._joint: Joint | None = None
        self._fits_wrappers = False  # as far as is known
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

    def joint(self, model: nn.Module, exchange: MomentExchange) -> Joint | None:
        """The ranks with which steps are taken, as :meth:`group` finds them, by ``exchange``.

        Raises:
            ValueError: a group that was given has other ranks than the wrapper of the model.
        """
        if not self._fits_wrappers and _is_running():
            if not isinstance(self._given, str):
                _require_ranks_of_wrappers(self._given, model)
            self._fits_wrappers = True
        group = self.group(model)
        if group is not None and self._joint is None:
            assert self._found is not None
            self._joint = Joint(group, self._found[1], exchange, self._config.split_refresh)
        return self._joint

    def group(self, model: nn.Module) -> Any:
        """The group over which steps are taken; None for this process alone.

        Raises:
            RuntimeError: there are several ranks, and it cannot be known whether they train the model together.
            ValueError: the settings cannot work on several ranks.
        """
        if self._given is None or not _is_running():
            return None
        if self._found is None:
            wrapper = _wrapper(model) if isinstance(self._given, str) else None
            group = self._given if wrapper is None else wrapper.process_group
            if isinstance(group, str) or group.size() == 1:
                group = None
            if group is not None:
                require_joint(self._config, group.size())
            self._found = (group, wrapper)
        return self._found[0]

    def __getstate__(self) -> dict[str, Any]:
        """Process groups are not copied: a copy finds its own."""
        given = None if self._given is None else "auto"
        return {"_given": given, "_config": self._config, "_found": None, "_joint": None, "_fits_wrappers": False}


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()


def _wrapper(model: nn.Module) -> DistributedDataParallel | None:
    """The ``DistributedDataParallel`` around or inside ``model``; None for a single rank without one."""
    if isinstance(model, DistributedDataParallel):
        return model
    ranks = dist.get_world_size()
    if ranks == 1:
        return None
    holders = _holders(model)
    if not holders or any(wrapper.process_group is not holders[0].process_group for wrapper in holders):
        known = "no DistributedDataParallel holds" if not holders else "DistributedDataParallels of several groups hold"
        raise RuntimeError(
            f"process_group='auto': torch.distributed runs {ranks} ranks, and {known} the parameters of this model, so LNB "
            f"cannot know which ranks train it together; each would drift away by steps of its own. Pass "
            f"process_group=torch.distributed.group.WORLD (or the group over which gradients are averaged), or "
            f"process_group=None if this process trains the model alone. Nothing was changed"
        )
    found: DistributedDataParallel = holders[0]
    return found


def _holders(model: nn.Module) -> list[DistributedDataParallel]:
    """The wrappers that hold parameters of ``model``.

    Trainers build the optimizer first and wrap the model afterwards, perhaps inside another module: the model does not know its
    wrapper. This looks through all objects.
    """
    parameters = set(model.parameters())
    wrappers = [found for found in gc.get_objects() if issubclass(type(found), DistributedDataParallel)]
    return [wrapper for wrapper in wrappers if not parameters.isdisjoint(wrapper.parameters())]


def _require_ranks_of_wrappers(group: Any, model: nn.Module) -> None:
    """Require that gradients are averaged over the ranks over which second moments are added: others would drift apart.

    Args:
        group: that was given; None for this process alone.
        model: what is trained.
    """
    own = [dist.get_rank()] if group is None else sorted(dist.get_process_group_ranks(group))
    for wrapper in _holders(model):
        others = sorted(dist.get_process_group_ranks(wrapper.process_group))
        if own != others:
            raise ValueError(
                f"process_group={group!r} has the ranks {own}, and the DistributedDataParallel that holds the model averages "
                f"gradients over {others}: leave process_group out, or give both the same ranks. Nothing was changed"
            )


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
