"""A budget of memory: smaller state for the layers whose state is largest, until all of it fits."""

from __future__ import annotations

from lnb.layers.claimed import Layer
from lnb.planning.choice import SMALLEST_BLOCK, Change, Choice, Choices, Option, as_arrow, descend, halve_blocks
from lnb.planning.memory import state_bytes


def fit_memory(choices: Choices, limit: int, others: int) -> Choices:
    """Change settings until the state of all layers, and ``others`` bytes besides, are at most ``limit`` bytes.

    Smaller blocks come first, then no averages of second moments, then blocks smaller still, then the arrow
    preconditioner alone; at every point the layer is changed that frees most.

    Raises:
        ValueError: it cannot be done.
    """
    choices, budget = dict(choices), "max_state_bytes"
    total = others + sum(state_bytes(layer, choice.config) for layer, choice in choices.items())
    stages = (
        halve_blocks(SMALLEST_BLOCK, budget),
        _drop_averages,
        halve_blocks(SMALLEST_BLOCK // 8, budget),
        _arrow_alone,
    )

    def take(layer: Layer, option: Option) -> None:
        choices[layer] = option.solved

    excess: float = total - limit
    for change in stages:

        def option(layer: Layer, change: Change = change) -> Option | None:
            other = change(layer, choices[layer])
            if other is None:
                return None
            saving = state_bytes(layer, choices[layer].config) - state_bytes(layer, other.config)
            return Option(saving, other, other) if saving > 0 else None

        excess = descend(excess, choices, option, take)
    if excess > 0:
        raise ValueError(
            f"max_state_bytes={limit} cannot be met: these layers and parameters need at least {limit + int(excess)} bytes, "
            f"even with the arrow preconditioner alone. Raise it, or leave it None"
        )
    return choices


def _drop_averages(layer: Layer, choice: Choice) -> Choice | None:
    if not choice.config.keeps_second_moment:
        return None
    reason = "no average of second moments: max_state_bytes"
    if choice.config.factored:
        return choice.change(reason, b_s=0.0)
    return choice.change(reason, b_s=0.0, refresh_every=1)


def _arrow_alone(layer: Layer, choice: Choice) -> Choice:
    return as_arrow(choice, "the preconditioner alone: max_state_bytes")
