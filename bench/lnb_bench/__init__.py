"""The benchmark harness: trains models with LNB and other optimizers, runs studies of them, and reports what came out."""

from __future__ import annotations
