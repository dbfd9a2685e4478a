"""Tasks by name and their options; the matrix factorisation's construction; short real runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lnb_bench.training import TASKS, DataError, LoopConfig, OptimizerConfig, TaskOptions, Trainer, make_task, train
from lnb_bench.training.data.augmented import AugmentedSplit
from lnb_bench.training.data.splits import ImageSplit, VectorSplit
from lnb_bench.training.models import ConvNeXt, ResNet
from lnb_bench.training.optimizers import build_optimizer
from lnb_bench.training.tasks import lora, physics


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


SMALL: dict[str, dict[str, object]] = {
    "mnist": {"width": 16},
    "cifar10": {"width": 16, "depth": 1, "heads": 2},
    "camvid": {"width": 2, "depth": 1, "size": 16},
    "shakespeare": {"width": 16, "depth": 1, "heads": 2, "context": 16},
    "diabetes": {"width": 16},
    "burgers": {"width": 8, "depth": 1},
    "helmholtz": {"width": 8, "depth": 1, "frequency": 1},
    "lora": {"width": 16, "depth": 1, "heads": 2, "context": 16, "rank": 2},
}


@pytest.fixture
def quick_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that adapters are for, made in two steps and kept in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lora, "PRETRAINING", {"steps": 2, "batch_size": 4, "lr": 1e-3})


@pytest.mark.usefixtures("quick_base")
@pytest.mark.parametrize("name", SMALL)
def test_real_tasks_train(real_data: Path, name: str) -> None:
    task = make_task(name, TaskOptions(data=real_data, **SMALL[name]))  # type: ignore[arg-type]
    batch_size = 1000 if name in ("burgers", "helmholtz") else 32  # which are without noise
    splits = ("train",) if name == "helmholtz" else ("train", "test")  # a residual says little of the solution at first
    for optimizer in ("lnb", "adamw"):  # one task: it takes longer to read the data than to train
        torch.manual_seed(0)
        trainer = Trainer(task, OptimizerConfig(optimizer), LoopConfig(steps=20, batch_size=batch_size))
        records = list(train(trainer))
        for split in splits:
            losses = [record.values["loss"] for record in records if record.split == split]
            assert losses[-1] < losses[0], (optimizer, split)
        assert task.objective.metric in records[-1].values


def test_every_task_is_tried() -> None:
    elsewhere = {"digits", "matrix-factorization", "autoencoder", "diamonds"}
    assert set(TASKS) == SMALL.keys() | elsewhere


@pytest.mark.usefixtures("quick_base")
def test_the_base_of_adapters_is_frozen_and_made_once(real_data: Path) -> None:
    options = TaskOptions(data=real_data, **SMALL["lora"])  # type: ignore[arg-type]
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(make_task("lora", options).build())
    first, second = (dict(model.named_parameters()) for model in models)
    for name, parameter in first.items():
        adapter = name.endswith(("down.weight", "up.weight"))
        assert parameter.requires_grad == adapter, name
        assert torch.equal(parameter, second[name]) != name.endswith("down.weight"), name
    tokens = torch.randint(0, 128, (2, 16))
    assert torch.equal(models[0](tokens), models[1](tokens))  # the adapters start at nothing


@pytest.mark.parametrize("model", ["resnet", "convnext"])
def test_networks_of_cifar10(model: str) -> None:
    build = ResNet if model == "resnet" else ConvNeXt
    network = build(3, 16, 10, width=4)
    group = build_optimizer(OptimizerConfig("lnb"), network, "constant", 8)
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 10
    losses = []
    for _ in range(8):
        group.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        group.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_augmented_images_are_shifts_and_mirror_images() -> None:
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(6, 3, 8, 8)
    plain = ImageSplit(images, torch.arange(6).to(torch.uint8))
    split, indices = AugmentedSplit(plain, reach=2), torch.arange(6)
    original = plain.batch(indices, torch.device("cpu"))[0][0]
    padded = torch.nn.functional.pad(original, [2] * 4)
    allowed = [padded[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    allowed += [window.flip(-1) for window in allowed]
    torch.manual_seed(0)
    inputs, labels = split.batch(indices, torch.device("cpu"))
    assert torch.equal(labels, indices)
    assert all(any(torch.equal(image, window) for window in allowed) for image in inputs)
    assert len({tuple(image.flatten().tolist()) for image in inputs}) > 1
    torch.manual_seed(0)
    assert torch.equal(split.batch(indices, torch.device("cpu"))[0], inputs)


def test_the_exact_solution_of_burgers() -> None:
    """By finite differences it solves the equation where the quadrature of half the nodes agrees with it."""
    generator = np.random.default_rng(0)
    t, x = generator.uniform(0.1, 0.9, 40), generator.uniform(-0.9, 0.9, 40)
    viscosity = 0.05  # smooth enough for differences

    def u(t: np.ndarray, x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return physics.burgers_solution(t, x, viscosity)

    h = 1e-3
    residual = (u(t + h, x) - u(t - h, x)) / (2 * h) + u(t, x) * (u(t, x + h) - u(t, x - h)) / (2 * h)
    residual -= viscosity * (u(t, x + h) - 2 * u(t, x) + u(t, x - h)) / h**2
    assert np.abs(residual).max() < 1e-3
    assert u(np.zeros(9), np.linspace(-1, 1, 9)) == pytest.approx(-np.sin(np.pi * np.linspace(-1, 1, 9)), abs=1e-12)
    sharp = [physics.burgers_solution(t, x, physics.VISCOSITY, nodes) for nodes in (physics.NODES, 2 * physics.NODES)]
    assert np.abs(sharp[0] - sharp[1]).max() < 1e-9


def test_the_residual_of_the_exact_solution_is_zero() -> None:
    """The network is replaced by the one that makes the ansatz exact."""
    task = make_task("helmholtz", TaskOptions(frequency=2, width=4, depth=1))
    model = task.build()
    points, right_side = task.train.batch(torch.arange(50), torch.device("cpu"))

    class Exact(torch.nn.Module):
        def forward(self, p: torch.Tensor) -> torch.Tensor:
            u = torch.sin(torch.pi * p[:, :1]) * torch.sin(2 * torch.pi * p[:, 1:])
            return u / ((1 - p[:, :1] ** 2) * (1 - p[:, 1:] ** 2))

    model.network = Exact()
    torch.testing.assert_close(model(points).detach(), right_side, rtol=1e-8, atol=1e-8)
    model.eval()
    inputs, solution = task.test.batch(torch.arange(70, 120), torch.device("cpu"))
    torch.testing.assert_close(model(inputs), solution, rtol=1e-8, atol=1e-8)


def test_diamonds(tmp_path: Path) -> None:
    header = "carat,cut,color,clarity,depth,table,price,x,y,z"
    rows = [f"0.{20 + i},Ideal,E,SI2,6{i % 3}.5,55,{300 + 10 * i},3.9,3.{i},2.4" for i in range(30)]
    file = tmp_path / "diamonds.csv"
    file.write_text("\n".join([header, *rows]))
    task = make_task("diamonds", TaskOptions(data=tmp_path))
    assert (len(task.train), len(task.test)) == (24, 6)
    inputs, targets = task.train.batch(torch.arange(24), torch.device("cpu"))
    assert (inputs.shape, targets.shape) == ((24, 26), (24, 1))
    assert targets.mean().item() == pytest.approx(0, abs=1e-6)
    file.write_text("\n".join([header, *rows[:20], rows[20].replace("Ideal", "Perfect")]))
    with pytest.raises(DataError, match=r"diamonds\.csv: damaged, or not the table of diamonds"):
        make_task("diamonds", TaskOptions(data=tmp_path))


def test_the_autoencoder(real_data: Path) -> None:
    task = make_task("autoencoder", TaskOptions(data=real_data))
    sizes = [layer.out_features for layer in task.build().modules() if isinstance(layer, torch.nn.Linear)]
    assert sizes == [1000, 500, 250, 30, 250, 500, 1000, 784]
    inputs, targets = task.test.batch(torch.arange(5), torch.device("cpu"))
    logits = torch.full_like(targets, 2.0)
    found = task.objective.summary(task.objective.sums(logits, targets))
    assert found["squared_error"] == pytest.approx(
        float((torch.sigmoid(logits) - targets).square().sum() / 5), rel=1e-5
    )
    assert found["loss"] == pytest.approx(float(task.objective.loss(logits, targets)), rel=1e-5)
    assert torch.equal(inputs.flatten(1), targets)
