"""The tasks: data, the model that fits it, and the objective, under one name each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lnb_bench.training.tasks import autoencoder, factorization, images, lora, physics, tables, text
from lnb_bench.training.tasks.base import Task, TaskOptions

__all__ = ["DEEPEST", "LARGEST", "MODELS", "TASKS", "Task", "TaskOptions", "make_task"]

LARGEST = 2**31 - 1  # of a size: products of two still fit 64 bits
DEEPEST = 1000  # layers or blocks: each takes time to build, so that a slip of the finger would seem to hang
MODELS = (
    "auto", "mlp", "unet", "vit", "gpt", "cnn", "factors", "resnet", "convnext", "autoencoder", "physics-informed",
)  # fmt: skip


def make_task(name: str, options: TaskOptions | None = None) -> Task:
    """The task ``name`` of :data:`TASKS`.

    Raises:
        ValueError: an option is not allowed, or has no meaning for this task and model.
        DataError: a data file is missing or damaged.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} must be one of {', '.join(TASKS)}")
    options = options or TaskOptions()
    if options.model not in MODELS:
        raise ValueError(f"model={options.model!r} must be one of {', '.join(MODELS)}")
    for number in ("width", "heads", "patch", "context", "size", "rank", "frequency"):
        value = getattr(options, number)
        if value is not None and not 1 <= value <= LARGEST:
            raise ValueError(f"{number}={value!r} must be at least 1 and at most {LARGEST}")
    if options.rescale is not None and not 0 <= options.rescale < 2**63:
        raise ValueError(f"rescale={options.rescale!r} must be a seed of at least 0 and below 2**63")
    if options.depth is not None and not 0 <= options.depth <= DEEPEST:
        raise ValueError(f"depth={options.depth!r} must be at least 0 and at most {DEEPEST}")
    options = dataclasses.replace(options, _used=set())
    task = TASKS[name](options)
    options.check_all_used(f"task {name} with model {options.model}")
    return task


TASKS: dict[str, Callable[[TaskOptions], Task]] = {
    "digits": images.digits,
    "mnist": images.mnist,
    "cifar10": images.cifar10,
    "camvid": images.camvid,
    "shakespeare": text.shakespeare,
    "matrix-factorization": factorization.matrix_factorization,
    "autoencoder": autoencoder.autoencoder,
    "diabetes": tables.diabetes,
    "diamonds": tables.diamonds,
    "burgers": physics.burgers,
    "helmholtz": physics.helmholtz,
    "lora": lora.lora,
}
