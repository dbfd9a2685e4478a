"""A study of seconds: digits and a small matrix, two optimizers, two seeds; and made-up profiles of a step."""

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

[families.both]
tasks = ["digits", "matrix"]
measure = "steps_to_target"

[quick]
seeds = [0]
steps = 0.5
rates = 1
tasks = ["digits"]
"""

PARTS = {
    "mlp": {
        "AdamW fused": {"forward": 4.0, "backward": 5.0, "statistics": 0.0, "solve": 0.0, "update": 1.0},
        "paper": {"forward": 4.0, "backward": 5.0, "statistics": 2.0, "solve": 8.0, "update": 1.0},
    }
}
MEMORY = [
    {"optimizer": "AdamW fused", "checkpointed": False, "peaks": {"64": 10e6, "256": 20e6}},
    {"optimizer": "paper, probe", "checkpointed": False, "peaks": {"64": 12e6, "256": 25e6}},
    {"optimizer": "AdamW fused", "checkpointed": True, "peaks": {"64": 10e6, "256": 10e6}},
    {"optimizer": "paper, probe", "checkpointed": True, "peaks": {"64": 11e6, "256": 15e6}},
]
PRODUCT = {
    "3 to 16": {"matrix-free": {"ratio": 0.5, "low": 0.4, "high": 0.6, "ms": 1.0}, "jax jvp + vjp": None},
}
PROFILES = {"parts": PARTS, "memory": MEMORY, "product": PRODUCT}
