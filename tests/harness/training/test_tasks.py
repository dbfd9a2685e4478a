"""Tasks by name and their options; the matrix factorisation's construction; short real runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lnb_bench.training import TASKS, LoopConfig, OptimizerConfig, TaskOptions, Trainer, make_task, train
from lnb_bench.training.data.splits import VectorSplit


def test_the_matrix_has_its_condition_number() -> None:
    task = make_task("matrix-factorization", TaskOptions(condition=1e4))
    assert isinstance(task.train, VectorSplit)
    x, y = task.train.inputs, task.train.targets
    matrix = torch.linalg.lstsq(x, y).solution.T
    values = torch.linalg.svdvals(matrix)
    assert (matrix.shape, values[0].item()) == ((10, 6), pytest.approx(1))
    assert (values[0] / values[-1]).item() == pytest.approx(1e4, rel=1e-6)
    torch.testing.assert_close(x @ matrix.T, y)


def test_the_data_do_not_depend_on_the_seed_and_the_factors_do() -> None:
    tasks = []
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        tasks.append(make_task("matrix-factorization"))
        models.append(tasks[-1].build())
    splits = [task.train for task in tasks]
    assert all(isinstance(split, VectorSplit) for split in splits)
    assert torch.equal(
        splits[0].batch(torch.arange(9), torch.device("cpu"))[1],
        splits[1].batch(torch.arange(9), torch.device("cpu"))[1],
    )
    first, second = (next(model.parameters()) for model in models)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("mnits", {}, "task='mnits' must be one of digits, mnist"),
        ("digits", {"model": "unet"}, "model='unet' does not fit task digits; it must be one of mlp, vit"),
        ("digits", {"model": "rnn"}, "model='rnn' must be one of auto"),
        ("digits", {"context": 12}, "context=12 has no meaning for task digits"),
        ("digits", {"heads": 2}, "heads=2 has no meaning for task digits with model auto"),
        ("digits", {"rescale": 1}, "rescale=1 has no meaning for task digits"),
        ("mnist", {"rescale": -1}, "rescale=-1 must be a seed"),
        ("digits", {"invert": True, "same_start": True}, "same_start=True has no meaning for task digits"),
        ("digits", {"width": 0}, "width=0 must be at least 1"),
        ("digits", {"depth": -1}, "depth=-1 must be at least 0"),
        ("matrix-factorization", {"condition": 0.5}, "condition=0.5 must be at least 1"),
        ("matrix-factorization", {"invert": True}, "invert=True has no meaning"),
    ],
)
def test_bad_options(task: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(task, TaskOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["lnb", "lnb-paper", "adamw", "muon", "sgd"])
def test_every_optimizer_learns_the_digits(optimizer: str) -> None:
    trainer = Trainer(make_task("digits"), OptimizerConfig(optimizer), LoopConfig(steps=110, evaluate_every=110))
    first, last = (record.values for record in train(trainer) if record.split == "test")
    assert first["accuracy"] < 0.25
    assert last["accuracy"] > 0.8


def test_rescaled_mnist_is_an_affine_map_of_mnist(real_data: Path) -> None:
    plain, rescaled, other = (
        make_task("mnist", TaskOptions(data=real_data, rescale=seed)) for seed in (None, 3, 4)
    )  # fmt: skip
    device, indices = torch.device("cpu"), torch.arange(200)
    for split in ("train", "test"):
        x, y, z = (getattr(task, split).batch(indices, device)[0] for task in (plain, rescaled, other))
        scale, shift = rescaled.train.affine  # type: ignore[attr-defined]
        torch.testing.assert_close(y, x * scale + shift)
        assert not torch.equal(y, z)
    assert 0.1 <= scale.min() < 0.12
    assert 8 < scale.max() <= 10
    assert -1 <= shift.min() < -0.9


@pytest.mark.parametrize("change", [{"invert": True}, {"rescale": 1}, {"invert": True, "rescale": 2}])
def test_the_same_start_of_other_inputs(real_data: Path, change: dict[str, object]) -> None:
    """What the network computes at first does not depend on the scales of the inputs, unless that is left to them."""
    options = [{}, {**change, "same_start": True}, change]
    logits = []
    for chosen in options:
        task = make_task("mnist", TaskOptions(data=real_data, width=16, **chosen))  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = task.build().double()
        inputs, _ = task.test.batch(torch.arange(100), torch.device("cpu"))
        logits.append(model(inputs.double()))
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)
    assert (logits[2] - logits[0]).abs().max() > 0.1


def test_the_same_start_is_for_the_multilayer_perceptron(real_data: Path) -> None:
    with pytest.raises(ValueError, match="same_start=True has no meaning for task mnist with model cnn"):
        make_task("mnist", TaskOptions(data=real_data, model="cnn", invert=True, same_start=True))


def test_cnn_of_cifar10(real_data: Path) -> None:
    task = make_task("cifar10", TaskOptions(data=real_data, model="cnn", width=4))
    model = task.build()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert not any("Norm" in type(module).__name__ for module in model.modules())
    trainer = Trainer(task, OptimizerConfig("lnb"), LoopConfig(steps=12, batch_size=32))
    records = [record for record in train(trainer) if record.split == "train"]
    assert records[-1].values["loss"] < records[0].values["loss"]


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("digits", "matrix-factorization")])
def test_real_tasks_train(real_data: Path, name: str) -> None:
    small = {
        "mnist": {"width": 16},
        "cifar10": {"width": 16, "depth": 1, "heads": 2},
        "camvid": {"width": 2, "depth": 1, "size": 16},
        "shakespeare": {"width": 16, "depth": 1, "heads": 2, "context": 16},
    }[name]
    task = make_task(name, TaskOptions(data=real_data, **small))  # type: ignore[arg-type]
    for optimizer in ("lnb", "adamw"):  # one task: it takes longer to read the data than to train
        torch.manual_seed(0)
        trainer = Trainer(task, OptimizerConfig(optimizer), LoopConfig(steps=20, batch_size=32))
        records = [record for record in train(trainer) if record.split == "test"]
        assert records[-1].values["loss"] < records[0].values["loss"], optimizer
        assert task.objective.metric in records[-1].values
