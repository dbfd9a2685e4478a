"""The page that bench/moments_study.py makes: its tables are those of the kept results."""

from __future__ import annotations

import json
from pathlib import Path

import moments_study as moments
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_the_kept_results() -> None:
    kept = json.loads((ROOT / "bench" / "results" / "moments.json").read_text())
    page = (ROOT / "docs" / "moments.md").read_text()
    assert moments.filled(page, moments.tables(kept)) == page
    assert moments.filled(page, "new").count("new\n") == 1


def test_every_transform_changes_images_and_keeps_their_shape() -> None:
    (_, _), (x, _) = moments.digits(0)
    images = x.view(-1, 8, 8).numpy()
    for name, transform in moments.transforms(0).items():
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
