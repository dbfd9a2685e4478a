"""What the Triton kernels share: int64 offsets, launch configurations, precision, the Gram kernel, crossover rules.

Nothing here is imported before the first call of a Triton kernel; only :mod:`.offsets`, :mod:`.gram` and the kernels
themselves import ``triton``.
"""
