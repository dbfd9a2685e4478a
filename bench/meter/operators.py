"""PyTorch's operators as CUDA launches: which of them launch nothing, how many those on lists need, and which are known."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

# Allocations, and questions that the host answers itself.
_FREE = {
    "aten.empty.memory_format", "aten.empty_like.default", "aten.empty_strided.default", "aten.new_empty.default",
    "aten.new_empty_strided.default", "aten._to_copy.host", "aten.lift_fresh.default", "aten.set_.source_Storage",
    "aten._unsafe_view.default", "aten.resize_.default", "aten.detach_.default", "aten._debug_has_internal_overlap.default",
}  # fmt: skip

# One launch each: elementwise, fills, copies, reductions, gathers, products by cuBLAS and cuDNN, normalisations, attention.
_SINGLE = {
    "__and__", "__or__", "__xor__", "bitwise_and_", "linspace", "norm", "pow_", "prod", "var", "floor", "ceil", "round",
    "remainder", "frexp", "nll_loss2d_forward", "nll_loss2d_backward", "log1p", "expm1", "repeat", "roll", "flip", "gelu_",
    "hardtanh", "reciprocal_", "sqrt_", "exp_", "abs_", "square_",
    "abs", "add", "add_", "addcmul", "addcmul_", "addmm", "all", "amax", "amin", "any", "arange", "argmax", "baddbmm",
    "bitwise_and", "bitwise_not", "bitwise_or", "bmm", "clamp", "clamp_", "clamp_min", "clamp_max", "clone", "copy_",
    "cos", "diag_embed", "div", "div_", "embedding", "embedding_dense_backward", "eq", "exp", "eye", "fill_", "full",
    "full_like", "ge", "gelu", "gelu_backward", "gather", "gt", "index", "index_add", "index_add_", "index_copy",
    "index_copy_", "index_select", "isfinite", "isnan", "le", "lerp", "lerp_", "logical_and", "logical_not", "lt",
    "masked_fill", "masked_fill_", "maximum", "mean", "minimum", "mm", "mul", "mul_", "nan_to_num", "ne", "neg",
    "new_full", "new_ones", "new_zeros", "ones", "ones_like", "pow", "relu", "relu_", "rsqrt", "rsqrt_", "rsub",
    "scalar_tensor", "scatter_", "segment_reduce", "select_backward", "sigmoid", "silu", "sin", "slice_backward",
    "sqrt", "square", "sub", "sub_", "sum", "tanh", "tanh_backward", "threshold_backward", "tril", "triu", "where",
    "zero_", "zeros", "zeros_like", "_to_copy", "convolution", "_softmax", "_softmax_backward_data", "_log_softmax",
    "_log_softmax_backward_data", "nll_loss_forward", "nll_loss_backward", "mse_loss", "mse_loss_backward",
    "native_layer_norm", "max_pool2d_with_indices", "max_pool2d_with_indices_backward", "avg_pool2d",
    "avg_pool2d_backward", "upsample_nearest2d", "upsample_nearest2d_backward", "adaptive_avg_pool2d",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward",
    "constant_pad_nd", "reciprocal", "log", "sign", "expand_copy", "normal_", "uniform_", "random_", "randint",
    "randn", "rand", "native_dropout", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm",
}  # fmt: skip

# More than one: the kernels that PyTorch starts for one call.
_SEVERAL = {
    "ldexp": 2,  # a power and a product
    "linalg_vector_norm": 1, "linalg_cholesky_ex": 3, "cholesky_inverse": 3, "linalg_solve_triangular": 2,
    "native_layer_norm_backward": 2, "native_batch_norm_backward": 2, "convolution_backward": 3, "cumsum": 2, "sort": 4,
    "_scaled_dot_product_flash_attention_backward": 3, "_scaled_dot_product_efficient_attention_backward": 3,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 3, "_fused_adamw_": 0,
}  # fmt: skip

# Tensors in a table of PyTorch's multi-tensor kernels, by the number of lists; chunks of 65,536 elements, 320 of a launch.
_TABLE = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
_CHUNK, _CHUNKS = 65536, 320


def is_free(func: Any) -> bool:
    """Whether the operator launches nothing."""
    return bool(func.is_view) or str(func) in _FREE


def require_known(name: str) -> None:
    """Raises NotImplementedError for an operator that no table here has."""
    base = name.removeprefix("aten.").partition(".")[0]
    known = name.startswith("aten.") and (base in _SINGLE or base in _SEVERAL or base in ("cat", "stack"))
    if not known and not base.startswith("_foreach_"):
        raise NotImplementedError(f"device_step: nothing is known of {name}; add it to bench/meter/operators.py")


def foreach_launches(name: str, args: tuple[Any, ...]) -> int:
    """How many launches an operator needs."""
    base = name.removeprefix("aten.").partition(".")[0]
    if base == "cat":  # kernel parameters hold 128 tensors
        return max(1, math.ceil(len(args[0]) / 128))
    if base == "_fused_adamw_":
        return tables(args[0], 4 if not args[5] else 5)
    if base.startswith("_foreach_"):
        lists = [value for value in args if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)]
        written = 0 if base.endswith("_") else 1
        launches = tables(lists[0], len(lists) + written)
        return launches + 1 if base == "_foreach_norm" else launches  # its partial sums are added by a second kernel
    return _SEVERAL.get(base, 1)


def tables(tensors: Any, lists: int) -> int:
    """Launches of a multi-tensor kernel of PyTorch over ``lists`` lists of tensors of these sizes."""
    most = _TABLE[min(5, max(1, lists))]
    launches, held, chunks = 0, 0, 0
    for tensor in tensors:
        own = math.ceil(tensor.numel() / _CHUNK)
        if held == most or chunks >= _CHUNKS:
            launches, held, chunks = launches + 1, 0, 0
        held, chunks = held + 1, chunks + own
        while chunks >= _CHUNKS and own:
            launches, chunks = launches + 1, chunks - _CHUNKS
            held = 1 if chunks else 0
            own = 0 if chunks < _CHUNKS else own
    return launches + (1 if chunks else 0)
