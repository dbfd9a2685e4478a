"""The page that the studies of moments make: its tables are those of the kept results."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import adapter_study
import conversion_study
import damping_study
import defaults_study
import drift_study
import full_batch_study
import gptq_study
import last_layer_study
import moments_study as moments
import pytest
import torch
import wide_layer_study

ROOT = Path(__file__).resolve().parents[2]


STUDIES = {
    "moments": (moments, "moments.md"),
    "adapters": (adapter_study, "moments.md"),
    "last_layer": (last_layer_study, "moments.md"),
    "drift": (drift_study, "moments.md"),
    "gptq": (gptq_study, "moments.md"),
    "wide_layer": (wide_layer_study, "moments.md"),
    "defaults": (defaults_study, "presets.md"),
    "damping": (damping_study, "presets.md"),
    "full_batch": (full_batch_study, "presets.md"),
    "conversion": (conversion_study, "move-over.md"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_has_the_kept_results(name: str) -> None:
    study: ModuleType = STUDIES[name][0]
    kept = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    page = (ROOT / "docs" / STUDIES[name][1]).read_text()
    marks = study.BEGIN, study.END
    assert moments.filled(page, study.tables(kept), *marks) == page
    assert moments.filled(page, "new", *marks).count("new\n") == 1


def test_a_model_is_trained_and_quantised_in_every_way() -> None:
    """The study of GPTQ, on a model of a few thousand parameters."""
    cell = gptq_study.Cell("a small MLP: accuracy in %", "digits", 40, 32, 200, {"width": 32, "depth": 1})
    found = gptq_study.measure(cell, cell.make(None), seed=0)
    ways = [f"{bits} bits: {way}" for bits in gptq_study.BITS for way in gptq_study.WAYS]
    assert found.keys() == {"training seconds", "not quantised", *ways}
    assert found["not quantised"] > 60
    assert abs(found["4 bits: GPTQ, LNB's state"] - found["not quantised"]) < 10
    assert found["2 bits: rounding"] < found["not quantised"]


def test_adapters_start_from_the_layer() -> None:
    (x, _), _ = moments.digits(0)
    layer = torch.nn.Linear(64, 16)
    moment = moments.lnb.gather_moments(torch.nn.Sequential(layer), [x])["0"]
    for start in adapter_study.STARTS:
        torch.testing.assert_close(adapter_study.Adapted(layer, moment, start)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_calibration_errors_that_are_known() -> None:
    """Always sure, and right in three of four: 25 %. As sure as right: 0."""
    y = torch.tensor([0, 0, 0, 1])
    sure, apt = torch.tensor([1.0, 0.0]).double().expand(4, 2), torch.tensor([0.75, 0.25]).double().expand(4, 2)
    assert last_layer_study.calibration_error(sure, y) == pytest.approx(25)
    assert last_layer_study.calibration_error(apt, y) == pytest.approx(0)


@pytest.mark.parametrize("study", [moments, drift_study])
def test_every_transform_changes_images_and_keeps_their_shape(study: ModuleType) -> None:
    (_, _), (x, _) = moments.digits(0)
    images = x.view(-1, 8, 8).numpy()
    if study is drift_study:
        images = images[:20].repeat(4, 1).repeat(4, 2)[:, 2:-2, 2:-2]
    for name, transform in study.transforms(0).items():
        moved = transform(images)
        assert moved.shape == images.shape, name
        assert abs(moved - images).mean() > 0.01, name


def test_halves_are_merged_and_judged() -> None:
    """A small run of the real functions: RegMean of two models that are one is that one."""
    data, test = moments.digits(0)
    model = moments.build(0)
    own = moments.train(model, data, 0, steps=20)
    assert moments.judge(model, test)[0] > 50
    exported = moments.lnb.export_moments(own)
    merged = moments.regmean([model, model], [exported, exported])
    assert all(torch.allclose(value, merged[name], atol=1e-5) for name, value in model.state_dict().items())


def test_differences_are_paired_and_an_alarm_has_a_known_area() -> None:
    """A loss that is 10 % or 30 % higher than that of the same seed; inputs that are all unusual, and all usual."""
    assert defaults_study.difference([1.1, 2.6], [1.0, 2.0]) == pytest.approx((20, 10))
    assert defaults_study.shown([1.0], [1.0]) == "no effect"
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 3)), torch.randn(200, 6)
    areas = moments.alarms(model, {"gathered": moments.lnb.gather_moments(model, [x])}, x, x, 9 * x)
    assert areas["all layers, gathered"] > 0.99
    assert moments.alarms(model, {}, x, x, x)["max softmax"] == pytest.approx(0.5)


def test_the_preset_for_full_batches_meets_its_target() -> None:
    assert full_batch_study.steps({}, 10.0, 0) < 30
    assert full_batch_study.shown([3, 4, full_batch_study.LIMIT + 1]) == "4 (3 to never)"


def test_a_conversion_is_tuned_on_one_seed_and_judged_by_others() -> None:
    """Of losses that are known: AdamW is best at 3e-3, LNB at half its rate; the product of rate and decay is kept."""
    best = {"adamw": 3e-3, "lnb": 0.2}
    seen = []

    def run(optimizer: str, settings: dict[str, float], seed: int) -> float:
        seen.append((optimizer, settings["lr"] * settings["weight_decay"], seed))
        return abs(settings["lr"] / best[optimizer] - 1) + seed

    row = conversion_study.compare(0.1, 3, run)
    assert row["rates"] == pytest.approx({"adamw": 3e-3, "converted": 0.4, "tuned": 0.2})
    expected = {"adamw": [1, 2], "converted": [2, 3], "tuned": [1, 2]}
    assert all(row["losses"][name] == pytest.approx(losses) for name, losses in expected.items())
    assert [product for optimizer, product, _ in seen if optimizer == "lnb"] == pytest.approx([3e-4] * 7)


def test_a_changed_number_changes_the_loss() -> None:
    cell = defaults_study.Cell("a small MLP", "digits", 20, 32, 100, {"width": 16, "depth": 1})
    task = cell.make(None)
    default, short = (defaults_study.final_loss(cell, task, settings, 0) for settings in ({}, {"lr": 1e-6}))
    assert default < short
    assert defaults_study.final_loss(cell, task, {"lr": defaults_study.LR}, 0) == default
    for study in (defaults_study, damping_study, full_batch_study):
        assert next(iter(study.variants())) == study.DEFAULT


@pytest.mark.parametrize(("name", "other"), [("FLOOR", 1e-4), ("TURNED", 10.0), ("TELLING", 1e-9)])
def test_a_constant_is_changed_where_rules_read_it_and_only_there(name: str, other: float) -> None:
    cell = damping_study.Friedman("a small MLP", "friedman", 300, 64, 200, {"width": 16, "depth": 3})
    if name == "TURNED":  # for which steps must be long enough to tell
        cell = defaults_study.Cell("a small MLP", "digits", 40, 32, 100, {"width": 16, "depth": 3})
    task = cell.make(None)
    before = defaults_study.final_loss(cell, task, {}, 0)
    values = getattr(damping_study.damping, name), other
    same, low = (damping_study.final_loss_of(cell, task, (name, value), 0) for value in values)
    assert before == same == defaults_study.final_loss(cell, task, {}, 0) != low
