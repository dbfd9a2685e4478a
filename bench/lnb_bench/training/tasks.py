"""The tasks: data, the model that fits it, and the objective, under one name each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lnb.demo.problems import MATRIX_SHAPE, matrix_data
from lnb_bench.training import data
from lnb_bench.training.data import camvid
from lnb_bench.training.data.splits import Split, VectorSplit
from lnb_bench.training.models import CNN, GPT, MLP, Factors, UNet, ViT
from lnb_bench.training.objectives import Classification, LeastSquares, NextToken, Objective, Segmentation

LARGEST = 2**31 - 1  # of a size: products of two still fit 64 bits
DEEPEST = 1000  # layers or blocks: each takes time to build, so that a slip of the finger would seem to hang
MODELS = ("auto", "mlp", "unet", "vit", "gpt", "cnn", "factors")


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
        width: hidden units (mlp), channels at full resolution (unet, cnn), token size (vit, gpt), inner dimension (factors).
        depth: hidden layers (mlp), halvings (unet, cnn), blocks (vit, gpt).
        heads: attention heads (vit, gpt).
        patch: side of a patch (vit).
        activation: ``"tanh"`` or ``"relu"`` (mlp).
        context: length of a text window (shakespeare).
        size: side of the images (camvid).
        condition: condition number of the matrix (matrix-factorization).
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
    for number in ("width", "heads", "patch", "context", "size"):
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


def _choose(options: TaskOptions, task: str, allowed: tuple[str, ...]) -> str:
    model = allowed[0] if options.model == "auto" else options.model
    if model not in allowed:
        raise ValueError(f"model={model!r} does not fit task {task}; it must be one of {', '.join(allowed)}")
    return model


def _classifier(
    options: TaskOptions, task: str, allowed: tuple[str, ...], shape: tuple[int, int], width: int, patch: int
) -> Callable[[], nn.Module]:
    """An image classifier for ``shape`` = (channels, side) and ten classes."""
    channels, side = shape
    model = _choose(options, task, allowed)
    if model == "cnn":
        return partial(CNN, channels, side, 10, **options.take("width", "depth"))
    if model == "mlp":
        chosen = options.take("width", "depth", "activation", width=width)
        return partial(MLP, channels * side * side, 10, **chosen)
    return partial(ViT, channels, side, 10, **options.take("width", "depth", "heads", "patch", patch=patch))


def _digits(options: TaskOptions) -> Task:
    train, test = data.load_digits(**options.take("invert"))
    build = _classifier(options, "digits", ("mlp", "vit"), (1, 8), width=128, patch=2)
    return Task("digits", train, test, build, Classification(), batch_size=128, steps=440)


def _mnist(options: TaskOptions) -> Task:
    train, test = data.load_mnist(options.data, **options.take("invert", "rescale"))
    build = _classifier(options, "mnist", ("mlp", "vit", "cnn"), (1, 28), width=800, patch=4)
    if _choose(options, "mnist", ("mlp", "vit", "cnn")) == "mlp" and options.take("same_start")["same_start"]:
        build = partial(_same_start, build, *train.change)
    return Task("mnist", train, test, build, Classification(), batch_size=1000, steps=180)


def _same_start(build: Callable[[], nn.Module], scale: Tensor, shift: Tensor) -> nn.Module:
    model = build()
    assert isinstance(model, MLP)
    model.start_as_before(scale, shift)
    return model


def _cifar10(options: TaskOptions) -> Task:
    build = _classifier(options, "cifar10", ("vit", "mlp", "cnn"), (3, 32), width=800, patch=4)
    train, test = data.load_cifar10(options.data, **options.take("invert"))
    return Task("cifar10", train, test, build, Classification(), batch_size=250, steps=2000)


def _camvid(options: TaskOptions) -> Task:
    _choose(options, "camvid", ("unet",))
    train, test = data.load_camvid(options.data, **options.take("size", "invert"))
    build = partial(UNet, 3, camvid.CLASSES, **options.take("width", "depth"))
    return Task("camvid", train, test, build, Segmentation(camvid.CLASSES, camvid.VOID), batch_size=16, steps=220)


def _shakespeare(options: TaskOptions) -> Task:
    _choose(options, "shakespeare", ("gpt",))
    train, test, vocabulary = data.load_shakespeare(options.data, **options.take("context"))
    build = partial(GPT, vocabulary, **options.take("context", "width", "depth", "heads"))
    return Task("shakespeare", train, test, build, NextToken(), batch_size=32, steps=500)


def _matrix_factorization(options: TaskOptions) -> Task:
    """Minimise ``E ||W2 W1 x - A x||^2 / 2`` over ``W1`` ``[width, 6]`` and ``W2`` ``[10, width]``, in float64.

    ``A`` ``[10, 6]`` has random orthonormal singular vectors and singular values that fall geometrically from 1 to
    ``1 / condition`` (default 1e5); the 1,000 inputs ``x`` are standard normal, all of them in every step. With a
    ``width`` of 6 (the default) or more the loss can reach zero, so all that is measured is optimisation: the relative
    error ``||W2 W1 X - A X||_F / ||A X||_F`` on the same data. Matrix and data are fixed; a run's seed varies the
    initial factors. After the experiment of arXiv:2502.01131, figure 1.
    """
    _choose(options, "matrix-factorization", ("factors",))
    condition = options.take("condition", condition=1e5)["condition"]
    if not condition >= 1:
        raise ValueError(f"condition={condition!r} must be at least 1")
    outputs, inputs = MATRIX_SHAPE
    split = VectorSplit(*matrix_data(condition))
    build = partial(Factors, inputs, outputs, **options.take("width", width=inputs))
    return Task("matrix-factorization", split, split, build, LeastSquares(), batch_size=len(split), steps=500)


TASKS: dict[str, Callable[[TaskOptions], Task]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "camvid": _camvid,
    "shakespeare": _shakespeare,
    "matrix-factorization": _matrix_factorization,
}
