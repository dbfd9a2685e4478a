"""Second moment of samples by the native CPU kernel: threads over tiles of the lower triangle, the same bits in every run.

Half of the products of ``X'X`` are formed. bfloat16 samples are multiplied by AVX512-BF16 where the CPU has it, and as
float32 otherwise.
"""

from __future__ import annotations

import torch

from lnb_kernels import _native
from lnb_kernels._matrix import as_matrix
from lnb_kernels.second_moment import reference

TYPE_NAMES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}


def second_moment(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    product: torch.dtype | None = None,
    blocks: int | None = None,
) -> torch.Tensor:
    """``S = sum_i w_i [x_i 1]' [x_i 1]``, ``[d+1, d+1]`` fp32, from ``x`` ``[..., d]`` fp32, bf16 or fp16.

    Samples may lie any distance apart (a view of every n-th sample is read in place). With ``product=torch.bfloat16`` samples
    are rounded to bfloat16 on their way into the product, without a copy of ``x`` in that dtype. Weighted samples go by the
    reference. With ``blocks`` the result is that of each block of features, ``[blocks, d/blocks+1, d/blocks+1]``.
    """
    if weights is not None or product == torch.float64:
        return reference.second_moment(x, weights, product, blocks)
    if product == torch.float16:
        x = x.half()
    samples = as_matrix(x).resolve_neg()
    if samples.stride(1) != 1 or samples.stride(0) < 0:
        samples = samples.contiguous()
    n, d = samples.shape[0], samples.shape[1] // (blocks or 1)
    s = torch.empty((d + 1, d + 1) if blocks is None else (blocks, d + 1, d + 1))
    native, threads = _native.module(), torch.get_num_threads()
    kind = getattr(native.Type, TYPE_NAMES[samples.dtype])
    for block in range(1 if blocks is None else blocks):
        source, target = (
            samples.data_ptr() + block * d * samples.itemsize,
            s.data_ptr() + block * (d + 1) ** 2 * s.itemsize,
        )
        native.second_moment(source, kind, n, d, samples.stride(0), product == torch.bfloat16, target, threads)
    return s
