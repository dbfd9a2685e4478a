"""What the last step did, layer by layer: kept on the device, read only when asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lnb.step import Outcome
from lnb.verdict import Verdict


class LayerRecords:
    """The last step's figures of every layer. Recording reads nothing from the device."""

    def __init__(self) -> None:
        self._products: dict[str, tuple[Tensor, int]] = {}  # a vector and the layer's place in it
        self._residuals: dict[str, Tensor] = {}
        self._refreshed: dict[str, int] = {}
        self._still: dict[tuple[str, ...], Tensor] = {}  # by the names of a step's layers and other parameters: counts

    def record(self, step: int, outcome: Outcome, names: dict[nn.Parameter, str], verdict: Verdict) -> None:
        """Keep the figures of step number ``step``, on one device.

        Args:
            step: its number.
            outcome: of the step.
            names: of the parameters that belong to no layer.
            verdict: on the step.
        """
        products, contexts = outcome.products, outcome.context.layers
        allowed = verdict.on(products.device)
        if allowed is not None or not all(map(math.isfinite, products.tolist())):
            still = products - products != 0  # NaN of what is not finite
            others = [names.get(parameter, "(added)") for parameter in outcome.context.others]
            key = (*(context.layer.name for context in contexts), *others)
            still = still if allowed is None else still & allowed
            if key in self._still:
                self._still[key].add_(still)  # in place: a captured CUDA graph counts on
            else:
                self._still[key] = still.long()
        for i, context in enumerate(contexts):
            if not context.layer.is_first:  # its figures are the whole layer's
                continue
            self._products[context.layer.name] = products, i
            if context.moments is not None or context.inputs:
                self._refreshed[context.layer.name] = step
        for i, residual in outcome.solution.residuals.items():
            self._residuals[contexts[i].layer.name] = residual

    def stood_still(self) -> dict[str, int]:
        """How many steps each layer or other parameter had no finite direction, by its name; only those that had such steps."""
        found: dict[str, int] = {}
        for names, counts in self._still.items():
            for name, count in zip(names, counts.tolist(), strict=True):
                if count:
                    found[name] = found.get(name, 0) + count
        return found

    def read(self, step: int, factors: dict[str, Tensor]) -> dict[str, float]:
        """The figures by ``layer/<name>/<figure>``, for :meth:`lnb.LNB.diagnostics`. Waits for the device.

        Args:
            step: number of steps made.
            factors: the cached ``L^-1`` or ``C^-1`` of layers that have one, ``[.., size, size]``.
        """
        found: dict[str, float] = {}
        for name, (products, i) in self._products.items():
            gain = float(products[i])
            found[f"layer/{name}/gain"] = gain
            found[f"layer/{name}/step_norm"] = math.sqrt(max(0.0, gain))
            if name in self._residuals:
                found[f"layer/{name}/residual"] = float(torch.linalg.vector_norm(self._residuals[name]))
            if name in self._refreshed:
                found[f"layer/{name}/refresh_age"] = step - 1 - self._refreshed[name]
            if name in factors:
                diagonal = factors[name].diagonal(dim1=-2, dim2=-1)
                spread = diagonal.amax(-1) / diagonal.amin(-1).clamp(min=torch.finfo(diagonal.dtype).tiny)
                found[f"layer/{name}/condition"] = float(spread.max())
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Copies start without figures: they have made no step."""
        return vars(LayerRecords())
