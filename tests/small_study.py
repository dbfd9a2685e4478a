"""A study of seconds: digits and a small matrix, two optimizers, two seeds."""

from __future__ import annotations

SUITE = """
seeds = [0, 1]
baseline = "adamw"

[optimizers.lnb]
rates = [0.01, 0.03]

[optimizers.adamw]
rates = [0.003, 0.01]
settings = { fused = true }

[tasks.digits]
options = { width = 16 }
steps = 24
evaluations = 4

[tasks.matrix]
task = "matrix-factorization"
options = { condition = 10.0 }
steps = 30
evaluations = 6
target = 0.5
rates = { adamw = [0.03, 0.1, 0.3] }

[quick]
seeds = [0]
steps = 0.5
rates = 1
tasks = ["digits"]
"""
