"""Passes of a whole step over all layers at once, for accelerators."""

from lnb_kernels.fused_step.apply import apply_
from lnb_kernels.fused_step.apply_arguments import AdamRule, Biases, Others, Weights

__all__ = ["AdamRule", "Biases", "Others", "Weights", "apply_"]
