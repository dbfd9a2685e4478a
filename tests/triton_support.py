"""Where the tests of Triton kernels run: on a GPU if there is one, else in the (repaired) interpreter.

Import this before any kernel: Triton reads ``TRITON_INTERPRET`` when a kernel is defined.
"""

from __future__ import annotations

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import triton_interpreter  # noqa: E402 - it imports triton

if DEVICE == "cpu":
    triton_interpreter.install()

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
