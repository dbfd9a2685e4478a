"""The refresh of the two-sided metric on NVIDIA GPUs: four launches for all layers, and no wait for the device."""

from __future__ import annotations

from lnb_kernels.refresh.cuda_kernel import largest_side, refresh_metrics, serves, takes
from lnb_kernels.refresh.layers import AveragedGradient, InputMetric, OutputMetric, averaged_tensors

__all__ = [
    "AveragedGradient",
    "InputMetric",
    "OutputMetric",
    "averaged_tensors",
    "largest_side",
    "refresh_metrics",
    "serves",
    "takes",
]
