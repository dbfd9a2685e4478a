"""What ``solver="auto"`` means for one layer: the cheapest of what is right for its settings."""

from __future__ import annotations

import dataclasses

from lnb.blocks import Block
from lnb.layers.capture import Rows
from lnb.planning.choice import Choice, bytes_kept
from lnb.planning.cost import layer_cost
from lnb.planning.rates import Rates


def choose_solver(block: Block, choice: Choice, rows: Rows, rates: Rates, room: float, dual: bool) -> Choice:
    """The cheapest solver for ``"auto"`` of those right for the settings; any other choice as it is.

    Remembered second moments, and trust regions that need a factor, are served by a factor. Otherwise conjugate gradients
    on the second moment and on the kept inputs take the same steps (up to rounding), and the exact solutions, a factor of
    each step's own second moment or the dual, leave nothing to be gained by more iterations: the cheapest is taken.

    Args:
        block: the layer.
        choice: its settings so far.
        rows: of one step.
        rates: of its device.
        dual: whether the ridge is positive, which the dual needs.
        room: bytes that its state and kept inputs may take, where another solver needs fewer.
    """
    config = choice.config
    if config.solver != "auto":
        return choice
    if config.factored:
        return choice.change("a factor serves until the next refresh", solver="cholesky")
    candidates = {
        "pcg": "conjugate gradients on the second moment",
        "cholesky": "exact, a factor of each second moment",
    }
    if config.ridge_mode == "absolute":
        candidates["matrix_free"] = "conjugate gradients on the kept inputs"
        if dual and rows.count < block.d_in:
            candidates["dual"] = f"exact, {rows.count} rows are fewer than {block.d_in} inputs"
    priced: dict[str, float] = {}
    for solver in candidates:
        changed = dataclasses.replace(config, solver=solver)
        if solver == "pcg" or bytes_kept(block, changed, rows) <= room:
            priced[solver] = layer_cost(block, changed, rows, rates).overhead
    best = min(priced, key=priced.__getitem__)
    slower = min((time for solver, time in priced.items() if solver != best), default=None)
    against = "" if slower is None else f", {1e3 * priced[best]:.3g} ms against {1e3 * slower:.3g}"
    return choice.change(f"auto: {candidates[best]}{against}", solver=best)
