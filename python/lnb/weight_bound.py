"""The second trust region: no step changes a layer's weights by more than a given share of their norm.

The trust regions of :mod:`lnb.trust_regions` bound what a step does to a layer's outputs, for the inputs seen so far. Where these
hardly vary - in deep plain networks, in a batch of one sample, with a dead feature - the metric is nearly singular. A short
step in function space is then a huge one in weight space, and the next inputs, or the next layer, see all of it. So a layer's
step ``D = (D_W, D_b)`` is shortened as a whole until

    ``||D_W||_F <= kappa max(||W||_F, W_0)``,    ``kappa = min(c lr, 1/4)``

``c`` is ``max_relative_change``; ``kappa`` follows ``lr``, and with it every schedule. ``W_0`` is the norm of PyTorch's usual
initialisation of the layer, ``sqrt(d_out / 3)``, so that weights that start at zero can move. The bound does not depend on the
scale of inputs, outputs or loss. Relatives bound or fix relative steps alone: LARS and LAMB (You et al.), and normalised
versions of Muon and Adam.

The unit of the region in function space depends on the data. With the trust region ``"two_sided"`` the step of a layer that sees
data, to which no gradient goes, changes a pre-activation by ``lr`` times

    ``max(1, s / sqrt(3))``

root mean square, where ``s`` is the root of the mean diagonal of the metric of its inputs
(:mod:`lnb.statistics.input_sizes`): the size of the pre-activations that weights of norm ``W_0`` make of them. So raw columns of
a table, pixels up to 255, or a few samples a hundred times as large as the others, are learnt in as many steps as
standardised inputs; a step of ``lr`` would be small beside what the layer computes. Of standardised inputs the unit is 1. It is
1 for all other layers: how large their inputs are is the network's own doing, and in a layer that is used again and again steps
in proportion to it compound (a linear map with a gain of 1.02, used a hundred times, diverges).

A step of relative length ``r`` that is orthogonal to the weights, as steps from noise are, makes them longer by a share of
``r^2 / 2``. This growth compounds over the layers and has nothing to do with the function that is learnt. It is summed up, and
taken back at refreshes, when the norm is measured: the weights then walk on a sphere, unless gradients point along them. Steps of
lengths ``r_s``, relative to the norm measured last, have made the weights ``sqrt(1 + sum r_s^2)`` times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import LayerContext
from lnb.damping import turned_back
from lnb.layers.claimed import Layer
from lnb.statistics.arenas import Arenas, Selection, constant
from lnb.statistics.input_sizes import select_input_sizes
from lnb.verdict import Verdict

LARGEST_CHANGE = 0.25


def usual_norm(layer: Layer) -> float:
    """``W_0``: entries uniform in ``+-1 / sqrt(d_in)``, as ``nn.Linear`` draws them, have the mean square ``1 / (3 d_in)``."""
    return math.sqrt(layer.d_out / 3)


def is_measured(context: LayerContext) -> bool:
    """Whether this step measures the layer's weight: it is refreshed, or has not been measured yet."""
    return context.moments is not None or bool(context.inputs) or "weight_norm" not in context.state


class WeightBound:
    """The bounds of one step of layers of one device.

    State of a layer's weight: ``weight_norm`` ``[]``, as measured last, and ``growth`` ``[]``, of the steps since.

    Attributes:
        turned: whether :meth:`measure` found that a layer's steps went back and forth, ``[layers]``; None where it measured none
            before.

    Args:
        contexts: the layers.
        config: the settings, with ``c``, :attr:`~lnb.config.Config.max_relative_change`.
        rates: each layer's learning rate, ``[layers]``, in the dtype of sums.
        verdict: whether anything may change.
        arenas: where the states live.
    """

    def __init__(
        self, contexts: list[LayerContext], config: Config, rates: Tensor, verdict: Verdict, arenas: Arenas
    ) -> None:
        self.turned: Tensor | None = None
        self._contexts = contexts
        self._config = config
        self._rates = rates
        self._ok = verdict.on(rates.device)
        self._arenas = arenas
        self._limits = (LARGEST_CHANGE / rates).clamp(max=config.max_relative_change)  # kappa / lr
        self._usual = constant(tuple(usual_norm(context.layer) for context in contexts), rates.device, rates.dtype)
        self._growth = self._numbers("growth", range(len(contexts)))
        self._input_sizes = select_input_sizes(contexts, arenas)

    def measure(
        self, scales: Tensor, squared_norms: Tensor, weight_norms: Tensor | None = None
    ) -> dict[nn.Parameter, Tensor]:
        """Measure the weights of the layers that are refreshed or were never measured, and take back their growth.

        Args:
            scales: what the direction of each layer is multiplied by beside ``lr``, ``[layers]``.
            squared_norms: ``||D_W||^2`` of the directions, ``[layers]``. Growth is left where this, the scale or ``lr`` is 0:
                such a layer stands still.
            weight_norms: of the weights, ``[layers]``, known where they are measured; None to take them of the layers here.

        Returns:
            The factors by which the step multiplies weights to take their growth back, ``[]`` each. Norms are those after it.
            The step itself multiplies, so that one that breaks off leaves no weight between two of its values.
        """
        contexts = self._contexts
        due = [i for i, context in enumerate(contexts) if is_measured(context)]
        if not due:
            return {}
        places = tuple(k for k, i in enumerate(due) if "weight_norm" in contexts[i].state)  # of those measured before
        grown = [due[k] for k in places]
        if weight_norms is None:
            norms = torch.stack(torch._foreach_norm([contexts[i].layer.weight for i in due], dtype=self._rates.dtype))
        else:
            norms = weight_norms[constant(tuple(due), self._rates.device)]
        factors: dict[int, Tensor] = {}
        if grown:
            index = constant(tuple(grown), self._rates.device)
            moving = (scales[index] != 0) & (squared_norms[index] != 0) & (self._rates[index] != 0)
            taken = moving if self._ok is None else moving & self._ok
            growth = self._numbers("growth", grown)
            found = constant(places, norms.device)
            squares = (norms[found] / self._numbers("weight_norm", grown).read()).square()
            turned = taken & turned_back(squares, growth.read(), self._config)
            self.turned = torch.zeros_like(self._rates, dtype=torch.bool).index_copy(0, index, turned)
            factor = torch.where(taken, (1 + 2 * growth.read()).rsqrt(), 1.0)
            growth.write(growth.read() * ~taken)
            factors = dict(zip(grown, factor.unbind(), strict=True))
            norms = norms.index_copy(0, found, norms[found] * factor)
        self._numbers("weight_norm", due).write(norms, self._ok)
        return {contexts[i].layer.weight: factor for i, factor in factors.items()}

    def factors(self, scales: Tensor, squared_norms: Tensor) -> Tensor:
        """What lengthens each layer's step to the unit of its data, and shortens it to the bound, ``[layers]``, from the
        norms measured last.

        Args:
            scales: what its direction is multiplied by beside ``lr``.
            squared_norms: ``||D_W||^2`` of the direction.
        """
        sizes = self._output_sizes()
        lengths = sizes * scales * squared_norms.sqrt()
        return sizes * (self._limits * self._norms() / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)

    def _output_sizes(self) -> Tensor:
        if self._input_sizes is None:
            return torch.ones_like(self._usual)
        sizes = self._input_sizes.read() / math.sqrt(3)
        return torch.where(sizes.isfinite(), sizes, 0.0).clamp(min=1)

    def note_growth(self, scales: Tensor, squared_norms: Tensor) -> None:
        """Add this step's growth, half its squared relative length, to what is taken back."""
        growth = 0.5 * squared_norms * (self._rates * scales / self._norms()).square()
        counts = growth.isfinite()
        self._growth.write(self._growth.read() + growth, counts if self._ok is None else counts & self._ok)

    def _norms(self) -> Tensor:
        return torch.maximum(self._numbers("weight_norm", range(len(self._contexts))).read(), self._usual)

    def _numbers(self, key: str, layers: Iterable[int]) -> Selection:
        states = [self._contexts[i].state for i in layers]
        return self._arenas.select(key, states, [()] * len(states), self._rates)
