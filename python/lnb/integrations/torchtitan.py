"""LNB in torchtitan's container of optimizers.

    from lnb.integrations.torchtitan import OptimizersContainer
    from torchtitan.components.optimizer import ParamGroupConfig

    optimizer = OptimizersContainer.Config(
        implementation="for-loop",
        param_groups=[ParamGroupConfig(pattern=".*", optimizer_name="LNB", optimizer_kwargs={"lr": 0.4})],
        optimizer_factory_kwargs_by_name={"LNB": {"preset": "fast"}},
    )

in place of torchtitan's own ``OptimizersContainer.Config``. Each group has its ``lr``, ``weight_decay`` and ``ridge``; all other
settings are LNB's, under its name. Other patterns may go to ``AdamW``. The state is named by parameter, as torchtitan's
checkpoints keep it. A part of a pipeline that has no layer for LNB is an error: give its parameters to ``AdamW``.

Tensor, expert and fully sharded data parallelism make parameters DTensors; what :class:`lnb.LNB` says about shards holds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchtitan.components import optimizer as titan

from lnb.optimizer import LNB


class OptimizersContainer(titan.OptimizersContainer):  # type: ignore[misc]
    """torchtitan's container, which knows one name more: ``"LNB"``."""

    class Config(titan.OptimizersContainer.Config):  # type: ignore[misc]
        """torchtitan's, unchanged; it builds this container."""

        __slots__ = ()

    def _build_param_groups(self, model: nn.Module, *arguments: Any) -> Any:  # torchtitan calls it once for every part
        self._part = model
        return super()._build_param_groups(model, *arguments)

    def _resolve_optimizer_factory(self, name: str) -> Any:
        return partial(_of_groups, self._part) if name == "LNB" else super()._resolve_optimizer_factory(name)


def _of_groups(model: nn.Module, groups: list[dict[str, Any]], **settings: Any) -> LNB:
    return LNB(model, params=groups, **settings)
