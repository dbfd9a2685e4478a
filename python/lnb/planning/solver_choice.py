"""What ``solver="auto"`` means for one layer: the cheapest of what is right for its settings."""

from __future__ import annotations

import dataclasses

from lnb.layers.capture import Samples
from lnb.layers.claimed import Layer
from lnb.planning.choice import Choice, bytes_kept
from lnb.planning.cost import layer_cost
from lnb.planning.rates import Rates
from lnb.solvers import names, solver_named


def choose_solver(layer: Layer, choice: Choice, samples: Samples, rates: Rates, room: float, dual: bool) -> Choice:
    """The cheapest solver for ``"auto"`` of those right for the settings; any other choice as it is.

    Remembered second moments, and trust regions that need a factor, are served by a factor. Otherwise conjugate gradients
    on the second moment and on the kept inputs take the same steps (up to rounding), and the exact solutions, a factor of
    each step's own second moment or the dual, leave nothing to be gained by more iterations: the cheapest is taken.

    Args:
        layer: the layer.
        choice: its settings so far.
        samples: of one step.
        rates: of its device.
        dual: whether the ridge is positive, which the dual needs.
        room: bytes that its state and kept inputs may take, where another solver needs fewer.
    """
    config = choice.config
    if not solver_named(config.solver).chooses:
        return choice
    if config.factored:
        return choice.change("a factor serves until the next refresh", solver=config.method.name)
    priced: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name in names():
        solver = solver_named(name)
        reason = solver.suits(layer, config, samples, dual)
        if reason is None:
            continue
        changed = dataclasses.replace(config, solver=name)
        if solver.always_fits or bytes_kept(layer, changed, samples) <= room:
            priced[name], reasons[name] = layer_cost(layer, changed, samples, rates).overhead, reason
    best = min(priced, key=priced.__getitem__)
    slower = min((time for name, time in priced.items() if name != best), default=None)
    against = "" if slower is None else f", {1e3 * priced[best]:.3g} ms against {1e3 * slower:.3g}"
    return choice.change(f"auto: {reasons[best]}{against}", solver=best)
