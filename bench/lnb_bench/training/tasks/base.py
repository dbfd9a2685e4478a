"""What a task is, and what can be varied in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lnb_bench.training.data.splits import Split
from lnb_bench.training.objectives import Objective


@dataclass(frozen=True)
class Task:
    """Everything a run needs except the optimizer.

    Attributes:
        name: the task's name in :data:`TASKS`, or one of your own.
        train: training examples.
        test: held-out examples (the training examples again where the task is pure optimisation).
        build: makes a fresh model; draws from torch's global generator.
        objective: loss and figures of merit.
        batch_size: default examples per step.
        steps: default number of steps.
    """

    name: str
    train: Split
    test: Split
    build: Callable[[], nn.Module]
    objective: Objective
    batch_size: int
    steps: int


@dataclass(frozen=True)
class TaskOptions:
    """What can be varied in a task; None is the task's default.

    Attributes:
        data: folder of the data files; else ``$LNB_DATA``, else fetched where that is possible.
        invert: train and test on inverted images, ``1 - x``.
        rescale: seed of a random scale and shift of every pixel (mnist).
        same_start: start from the function that the network would be of the images as they are, whatever ``invert`` and
            ``rescale`` make of them, so that only the optimizer sees the difference (mnist, mlp).
        model: one of :data:`MODELS`; ``"auto"`` is the task's first.
        width: hidden units (mlp, physics-informed), channels at full resolution (unet, cnn, resnet, convnext), token size (vit,
            gpt), inner dimension (factors), units of the code (autoencoder).
        depth: hidden layers (mlp, physics-informed), halvings (unet, cnn), blocks (vit, gpt), blocks of each of three stages
            (resnet, convnext).
        heads: attention heads (vit, gpt).
        patch: side of a patch (vit).
        activation: ``"tanh"`` or ``"relu"`` (mlp, autoencoder).
        context: length of a text window (shakespeare, lora).
        size: side of the images (camvid).
        condition: condition number of the matrix (matrix-factorization).
        augment: train on images that are shifted by up to four pixels and mirrored at random (cifar10).
        rank: of the adapters (lora).
        frequency: half waves of the solution along its second coordinate (helmholtz).
    """

    data: Path | None = None
    invert: bool = False
    rescale: int | None = None
    same_start: bool = False
    model: str = "auto"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None
    activation: str | None = None
    context: int | None = None
    size: int | None = None
    condition: float | None = None
    augment: bool = False
    rank: int | None = None
    frequency: int | None = None
    _used: set[str] = field(default_factory=set, compare=False, repr=False)

    def take(self, *names: str, **defaults: Any) -> dict[str, Any]:
        """The values of ``names`` that are set, over ``defaults``; :meth:`check_all_used` knows them as used."""
        self._used.update(names)
        return {**defaults, **{name: getattr(self, name) for name in names if getattr(self, name) is not None}}

    def check_all_used(self, where: str) -> None:
        """Require that every option that was set has had an effect.

        Raises:
            ValueError: one had not.
        """
        for entry in dataclasses.fields(self):
            if entry.name in ("data", "model", "_used") or entry.name in self._used:
                continue
            if getattr(self, entry.name) not in (None, False):
                raise ValueError(f"{entry.name}={getattr(self, entry.name)!r} has no meaning for {where}; leave it out")


def choose(options: TaskOptions, task: str, allowed: tuple[str, ...]) -> str:
    """The model that ``options`` ask for, the first of ``allowed`` by default.

    Raises:
        ValueError: it is not one of ``allowed``.
    """
    model = allowed[0] if options.model == "auto" else options.model
    if model not in allowed:
        raise ValueError(f"model={model!r} does not fit task {task}; it must be one of {', '.join(allowed)}")
    return model
