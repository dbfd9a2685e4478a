"""What an :class:`lnb.LNB` keeps where parameters are sharded: the ranks, the local layers, and the sums that ranks exchange."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import StepContext
from lnb.distributed.exchange import MomentExchange
from lnb.distributed.identity import Identity
from lnb.layers.claimed import Inventory, Layer
from lnb.scratch import Scratch
from lnb.sharded.checks import (
    require_columns,
    require_known_parallel,
    require_no_sums,
    require_own_ranks,
    require_rows,
    require_settings,
)
from lnb.sharded.local import Locals, PartState
from lnb.sharded.mesh import Ranks, columns_of, data_modules
from lnb.sharded.state import StateForm
from lnb.sharded.step import Exchange, ShardedShare
from lnb.state.whole import restart
from lnb.statistics.arenas import Arenas
from lnb.step import Share, Stages
from lnb.verdict import Verdict
from lnb_kernels import multi_tensor


@dataclass(frozen=True)
class Imported:
    """A state dict as one of local layers and parameters.

    Attributes:
        state_dict: with the same progress, but of local parameters.
        param_groups: the optimizer's, of local parameters.
        inventory: of local layers.
        restarted: weights whose factors have to start anew.
    """

    state_dict: dict[str, Any]
    param_groups: list[dict[str, Any]]
    inventory: Inventory
    restarted: list[nn.Parameter]


class Shards:
    """The shards of one optimizer's model.

    Args:
        model: with parameters that are ``DTensor``.
        inventory: its layers.
        param_groups: the optimizer's.
        states: the optimizer's, by parameter.
        config: its settings.
        given: ``process_group``.
        exchange: of the optimizer.

    Raises:
        TypeError: parameters are cut in a way that cannot be served.
        ValueError: the settings cannot work on shards.
        RuntimeError: it cannot be known which ranks train together.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Inventory,
        param_groups: list[dict[str, Any]],
        states: Any,
        config: Config,
        given: Any,
        exchange: MomentExchange,
    ) -> None:
        self._config = config
        self._moments = exchange
        self._model = model
        self._inventory = inventory
        self._groups = param_groups
        parameters = [parameter for group in param_groups for parameter in group["params"]]
        moving = set(parameters)
        layers = [layer for layer in inventory.layers if layer.weight in moving]
        require_no_sums(parameters, inventory.names)
        self.ranks = Ranks(model, given if isinstance(given, dist.ProcessGroup) else None)
        for layer in layers:
            require_rows(layer, self.ranks)
            require_known_parallel(layer, self.ranks)
        for layer in layers:
            layer.columns = columns_of(layer.weight)
            require_columns(layer, config)
            for capture in (part for whole in layer.captures for part in whole.live_captures()):
                capture.resize(layer.d_in_here)
                if self.ranks.runs_on is not None:
                    capture.runs_on = self.ranks.runs_on
        self._require_known(given)
        if self.ranks.size > 1:
            require_settings(config, self.ranks.size)
        self.locals = Locals(layers, parameters, states)
        self._numbers = {local: number for number, local in enumerate(self.locals.owners)}
        self.exchange = Exchange(self.ranks, self.locals, layers, parameters)
        self.names = {
            local: inventory.names.get(parameter, "(added)") for local, (parameter, _) in self.locals.owners.items()
        }
        self._form = StateForm(self.locals, config.block_size)
        self._modules = data_modules(model)

    def _require_known(self, given: Any) -> None:
        size, world = self.ranks.size, dist.get_world_size()
        seen = self.ranks.data_size
        if isinstance(given, dist.ProcessGroup) and data_modules(self._model) and given.size() != seen:
            raise ValueError(
                f"process_group has {given.size()} ranks, and fully_shard gave the samples to {seen}: leave process_group out"
            )
        if given is None and size > 1:
            raise ValueError(
                f"process_group=None says that this process trains the model alone, but its parameters are sharded over {size} "
                f"ranks: leave process_group out"
            )
        if isinstance(given, str) and size < world and not data_modules(self._model):
            raise RuntimeError(
                f"process_group='auto': torch.distributed runs {world} ranks, and the parameters of this model are sharded over "
                f"{size} of them by tensor parallelism, so LNB cannot know whether the others see other samples. Pass "
                f"process_group=the group over which this rank's gradients are averaged, or shard with fully_shard too"
            )

    @property
    def waits(self) -> bool:
        """Whether hosts wait to know that a step can be made: those of columns and of iterations have more exchanges."""
        iterates = not self._config.factored and self._config.solver == "pcg" and self._config.cg_scope == "layer"
        return iterates or any(layer.columns is not None for layer in self.locals.layers)

    def stages(
        self, context: StepContext, verdict: Verdict, config: Config, arenas: Arenas, scratch: Scratch
    ) -> Stages:
        """The stages of one step, for :class:`lnb.step.Memory`."""
        if self.ranks.size == 1:
            return Share(context, verdict, config, arenas, scratch)
        return ShardedShare(self.exchange, context, verdict, config, arenas, scratch)

    def register(self) -> None:
        """Have the modules hold their shards, also where they were told to keep whole parameters after a backward pass."""
        for module in self._modules:
            module.reshard()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, nothing is exchanged: what is made does not depend on it."""
        self.locals.follow()
        self.exchange.on = False
        try:
            yield
        finally:
            self.exchange.on = True

    def on_shards(self, context: StepContext) -> StepContext:
        """``context`` with the model's parameters replaced by the shards here. :meth:`add` has looked at the gradients."""
        context.gradients_checked = True
        return self.locals.with_stand_ins(context)

    def mark(self, states: Any) -> None:
        """After a step, note in the states what a state dict has to say about these shards."""
        self._form.mark(states)

    def exported(self, states: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
        """The entries ``state`` of a state dict, by the parameters' numbers, as checkpoints keep them."""
        parameters = [parameter for group in self._groups for parameter in group["params"]]
        return {number: self._form.exported(parameters[number], state) for number, state in states.items()}

    def imported(self, state_dict: dict[str, Any]) -> Imported:
        """``state_dict`` as one of the local layers and parameters, which can be checked and restored as any other."""
        saved_groups, states = state_dict["param_groups"], state_dict["state"]
        local_groups, local_saved, local_states = [], [], {}
        restarted: list[nn.Parameter] = []
        for group, saved in zip(self._groups, saved_groups, strict=True):
            members: list[nn.Parameter] = []
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                parts = self.locals.stand_ins[parameter]
                if number in states:
                    require_own_ranks(states[number], parameter, self.names[parts[0].local])
                    entries, restarts = self._form.imported(parameter, states[number])
                    for part, entry in zip(parts, entries, strict=True):
                        local_states[self._numbers[part.local]] = entry
                        restarted += [part.local] if restarts else []
                members += [part.local for part in parts]
            local_groups.append({**group, "params": members})
            local_saved.append({**saved, "params": [self._numbers[local] for local in members]})
        inventory = Inventory([b for parts in self.locals.layers.values() for b in parts], self.names, {})
        return Imported(
            {**state_dict, "state": local_states, "param_groups": local_saved}, local_groups, inventory, restarted
        )

    def merged(self, restored: Any, imported: Imported) -> defaultdict[Tensor, Any]:
        """Store the restored states of local parameters as those of the model's."""
        states: defaultdict[Tensor, Any] = defaultdict(dict)
        for local in imported.restarted:
            restart(restored[local])
        for local, state in restored.items():
            parameter, number = self.locals.owners[local]
            into = states[parameter] if number == 0 else PartState(states[parameter], number)
            into.update(state)
        self._form.mark(states)
        return states

    @property
    def sharers(self) -> None:
        """Refreshes are not shared out: outputs already are."""

    def follow(self, layers: list[Layer]) -> None:
        """Backward passes need not be noticed: ``fully_shard`` has gradients only when they have ended."""

    def add(self, layers: list[Layer], device: torch.device, identity: Identity, failed: bool = False) -> Tensor:
        """The exchange before a step: second moments, and whether every rank can make it."""
        bad: bool | Tensor = failed
        if not failed:
            self.locals.follow()
            gradients = [local.grad for local in self.locals.owners if local.grad is not None]
            bad = ~multi_tensor.all_finite([gradient for gradient in gradients if gradient.device == device])
            for other in {gradient.device for gradient in gradients} - {device}:
                bad = bad | ~multi_tensor.all_finite([g for g in gradients if g.device == other]).to(device)
        ranks, counts = self.ranks, self.ranks.sees_own_samples()
        where = device if ranks.runs_on is None else ranks.runs_on
        return self._moments.add(layers, ranks.groups, ranks.size, where, identity, bad, counts).to(device)

    def leave(self, layers: list[Layer], device: torch.device, identity: Identity, seen_by_host: bool) -> None:
        """Take part in the exchanges of a step that this rank cannot make."""
        refreshed = self._config.region.two_sided and self._moments.gathers
        self.add(layers, device, identity, failed=True)
        if not seen_by_host:  # the others go on to steps that write nothing
            self.exchange.leave(device, refreshed)
