"""Updates of a whole model's tensors in one call: finite check, moving average, dot products, decayed step."""

from lnb_kernels.multi_tensor.op import all_finite, apply_, apply_master_, dot, ema_, ema_combined_, ema_squared_norms_

__all__ = ["all_finite", "apply_", "apply_master_", "dot", "ema_", "ema_combined_", "ema_squared_norms_"]
