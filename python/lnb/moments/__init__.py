"""The second moment of every layer's inputs as a product: exported from a training, or gathered from data, and put to use.

``E[x x']`` of a layer's inputs is what quantisation by GPTQ, merging by RegMean, adapters by CorDA and alarms for unusual inputs
need. :class:`lnb.LNB` keeps it anyway; :func:`gather_moments` computes it for any model. ``docs/moments.md`` is a guide.
"""

from __future__ import annotations

from lnb.moments.adapters import Adapter, corda
from lnb.moments.collection import Moments
from lnb.moments.drift import DriftMonitor, mahalanobis
from lnb.moments.export import export_moments, load_moments
from lnb.moments.gather import gather_moments
from lnb.moments.grid import Quantized, round_to_nearest
from lnb.moments.laplace import LastLayerPosterior, output_factor
from lnb.moments.merging import regmean
from lnb.moments.quantization import gptq, quantize
from lnb.moments.ranks import reduce_moments
from lnb.moments.record import LayerInfo, LayerMoment, MissingMoment

__all__ = [
    "Adapter",
    "DriftMonitor",
    "LastLayerPosterior",
    "LayerInfo",
    "LayerMoment",
    "MissingMoment",
    "Moments",
    "Quantized",
    "corda",
    "export_moments",
    "gather_moments",
    "gptq",
    "load_moments",
    "mahalanobis",
    "output_factor",
    "quantize",
    "reduce_moments",
    "regmean",
    "round_to_nearest",
]
