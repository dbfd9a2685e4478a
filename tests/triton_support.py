"""Where the tests of Triton kernels run: on a GPU if there is one, else in the interpreter, repaired and with bounds checked.

Import this before any kernel: Triton reads ``TRITON_INTERPRET`` when a kernel is defined.
"""

from __future__ import annotations

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402, F401 - tests take it from here, after the line above
import triton.language as tl  # noqa: E402, F401
import triton_interpreter  # noqa: E402
import triton_sanitizer  # noqa: E402

if DEVICE == "cpu":
    triton_interpreter.install()
    triton_sanitizer.install()

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
