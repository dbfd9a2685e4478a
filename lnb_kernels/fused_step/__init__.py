"""A step of the trust region "two_sided" on an accelerator, in a few launches for all layers of a model.

:func:`direct_layers_` makes the directions from the gradients, :func:`finish_layers_` their rows' and layers' scales, and
:func:`apply_` moves the parameters, those of no layer by Adam's rule.
"""

from lnb_kernels.fused_step.apply import apply_
from lnb_kernels.fused_step.apply_arguments import AdamRule, Biases, Others, Weights
from lnb_kernels.fused_step.available import available
from lnb_kernels.fused_step.checks import PRECISIONS
from lnb_kernels.fused_step.layers import partial_count, serves
from lnb_kernels.fused_step.op import direct_layers_, finish_layers_

__all__ = [
    "PRECISIONS",
    "AdamRule",
    "Biases",
    "Others",
    "Weights",
    "apply_",
    "available",
    "direct_layers_",
    "finish_layers_",
    "partial_count",
    "serves",
]
