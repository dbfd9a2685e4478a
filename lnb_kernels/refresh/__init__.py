"""The refresh of the two-sided metric on GPUs: four launches for all layers, and no wait for the device."""

from __future__ import annotations

from lnb_kernels.refresh.dispatch import Refresher, refreshers
from lnb_kernels.refresh.layers import AveragedGradient, InputMetric, OutputMetric, averaged_tensors, takes

__all__ = [
    "AveragedGradient",
    "InputMetric",
    "OutputMetric",
    "Refresher",
    "averaged_tensors",
    "refreshers",
    "takes",
]
