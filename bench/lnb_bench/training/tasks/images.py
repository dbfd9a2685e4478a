"""Images: digits, MNIST, CIFAR-10 (classes), CamVid (a class for every pixel)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from lnb_bench.training import data
from lnb_bench.training.data import camvid as camvid_data
from lnb_bench.training.data.augmented import AugmentedSplit
from lnb_bench.training.data.splits import Split
from lnb_bench.training.models import CNN, MLP, ConvNeXt, ResNet, UNet, ViT
from lnb_bench.training.objectives import Classification, Segmentation
from lnb_bench.training.tasks.base import Task, TaskOptions, choose


def _classifier(
    options: TaskOptions, task: str, allowed: tuple[str, ...], shape: tuple[int, int], width: int, patch: int
) -> Callable[[], nn.Module]:
    """An image classifier for ``shape`` = (channels, side) and ten classes."""
    channels, side = shape
    model = choose(options, task, allowed)
    if model == "cnn":
        return partial(CNN, channels, side, 10, **options.take("width", "depth"))
    if model in ("resnet", "convnext"):
        build = ResNet if model == "resnet" else ConvNeXt
        return partial(build, channels, side, 10, **options.take("width", "depth"))
    if model == "mlp":
        chosen = options.take("width", "depth", "activation", width=width)
        return partial(MLP, channels * side * side, 10, **chosen)
    return partial(ViT, channels, side, 10, **options.take("width", "depth", "heads", "patch", patch=patch))


def digits(options: TaskOptions) -> Task:
    train, test = data.load_digits(**options.take("invert"))
    build = _classifier(options, "digits", ("mlp", "vit"), (1, 8), width=128, patch=2)
    return Task("digits", train, test, build, Classification(), batch_size=128, steps=440)


def mnist(options: TaskOptions) -> Task:
    train, test = data.load_mnist(options.data, **options.take("invert", "rescale"))
    build = _classifier(options, "mnist", ("mlp", "vit", "cnn"), (1, 28), width=800, patch=4)
    if choose(options, "mnist", ("mlp", "vit", "cnn")) == "mlp" and options.take("same_start")["same_start"]:
        build = partial(_same_start, build, *train.change)
    return Task("mnist", train, test, build, Classification(), batch_size=1000, steps=180)


def _same_start(build: Callable[[], nn.Module], scale: Tensor, shift: Tensor) -> nn.Module:
    model = build()
    assert isinstance(model, MLP)
    model.start_as_before(scale, shift)
    return model


def cifar10(options: TaskOptions) -> Task:
    models = ("vit", "mlp", "cnn", "resnet", "convnext")
    build = _classifier(options, "cifar10", models, (3, 32), width=800, patch=4)
    images, test = data.load_cifar10(options.data, **options.take("invert"))
    train: Split = AugmentedSplit(images) if options.take("augment")["augment"] else images
    return Task("cifar10", train, test, build, Classification(), batch_size=250, steps=2000)


def camvid(options: TaskOptions) -> Task:
    choose(options, "camvid", ("unet",))
    train, test = data.load_camvid(options.data, **options.take("size", "invert"))
    build = partial(UNet, 3, camvid_data.CLASSES, **options.take("width", "depth"))
    return Task(
        "camvid", train, test, build, Segmentation(camvid_data.CLASSES, camvid_data.VOID), batch_size=16, steps=220
    )
