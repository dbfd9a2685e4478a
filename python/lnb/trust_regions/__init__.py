"""Trust regions: what each direction is divided by, which decides how long a step is.

With the metric ``M = E[x~ x~'] + ridge = L L'`` a step ``D`` of a layer changes its outputs by
``E ||D x~||^2 = ||D L||_F^2`` (up to the ridge), and for ``D = h`` that is ``<h, g~>``. A trust region bounds that change, each
in its own norm: one file each. These are bounds: near a minimum, where ``sqrt(<h, g~>)`` falls below ``min_norm``, steps of
``"global"`` and ``"layer"`` are shorter, and in every region :mod:`lnb.weight_bound` and :mod:`lnb.damping` shorten them further.

A region of your own is a subclass of :class:`TrustRegion`, made known by :func:`register`::

    class Signs(TrustRegion):
        name = "signs"

        def scales(self, steps):
            ...

    lnb.trust_regions.register(Signs())
    lnb.LNB(model, trust_region="signs")
"""

from __future__ import annotations

from lnb.registry import Registry
from lnb.trust_regions.base import Steps, TrustRegion
from lnb.trust_regions.joint import Global
from lnb.trust_regions.layer import Layer
from lnb.trust_regions.neuron import Neuron
from lnb.trust_regions.rms import RootMeanSquare
from lnb.trust_regions.spectral import Spectral
from lnb.trust_regions.two_sided import TwoSided

__all__ = ["Steps", "TrustRegion", "names", "region_named", "register"]

_REGIONS = Registry("region", TrustRegion, "lnb.trust_regions.TrustRegion")


def register(region: TrustRegion) -> None:
    """Make a region known by its name, as a value of the setting ``trust_region``.

    Raises:
        TypeError: ``region`` is no :class:`TrustRegion`.
        ValueError: its name is no text, or another region has it.
    """
    _REGIONS.add(region)


def names() -> tuple[str, ...]:
    """The names of all regions."""
    return tuple(_REGIONS.known)


def region_named(name: str) -> TrustRegion:
    """The region of that name, which :func:`names` has."""
    return _REGIONS.known[name]


for _region in (Global(), Layer(), Neuron(), TwoSided(), Spectral(), RootMeanSquare()):
    register(_region)
