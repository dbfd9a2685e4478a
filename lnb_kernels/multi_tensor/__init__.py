"""Updates of a whole model's tensors in one call: finite check, moving average, products and norms, decayed step."""

from lnb_kernels.multi_tensor.op import (
    all_finite,
    apply_,
    apply_master_,
    dot,
    ema_combined_,
    squared_row_norms,
)
from lnb_kernels.multi_tensor.op import moment_flags as moment_flags  # of the optimizer alone

__all__ = [
    "all_finite",
    "apply_",
    "apply_master_",
    "dot",
    "ema_combined_",
    "squared_row_norms",
]
