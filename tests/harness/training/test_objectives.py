"""Objectives against figures worked out by hand, and their additivity over batches."""

from __future__ import annotations

import pytest
import torch

from lnb_bench.training.objectives import Classification, LeastSquares, NextToken, Objective, Segmentation


def test_classification() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([0, 0, 0])
    summary = Classification().summary(Classification().sums(logits, targets))
    wanted = [
        torch.log(1 + torch.exp(torch.tensor(-2.0))),
        torch.log(torch.tensor(2.0)),
        torch.log(1 + torch.e ** torch.tensor(1.0)),
    ]
    assert summary["loss"] == pytest.approx(float(sum(wanted)) / 3, rel=1e-6)
    assert summary["accuracy"] == pytest.approx(2 / 3)


def test_segmentation_by_hand() -> None:
    objective = Segmentation(classes=3, void=255)
    targets = torch.tensor([[[0, 0, 1], [1, 255, 255]]])
    predictions = torch.tensor([[[0, 1, 1], [1, 0, 2]]])
    logits = torch.nn.functional.one_hot(predictions, 3).permute(0, 3, 1, 2).float() * 50
    summary = objective.summary(objective.sums(logits, targets))
    assert summary["pixel_accuracy"] == pytest.approx(3 / 4)
    assert summary["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 2 is neither there nor predicted
    assert summary["loss"] == pytest.approx(50 / 4)


def test_least_squares() -> None:
    outputs, targets = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [6.0, 8.0]])
    summary = LeastSquares().summary(LeastSquares().sums(outputs, targets))
    assert summary["relative_error"] == pytest.approx((125 / 100) ** 0.5)
    assert summary["loss"] == pytest.approx(0.5 * 125 / 2)


@pytest.mark.parametrize(
    ("objective", "outputs", "targets"),
    [
        (Classification(), torch.randn(8, 5), torch.randint(5, (8,))),
        (NextToken(), torch.randn(8, 4, 5), torch.randint(5, (8, 4))),
        (Segmentation(3, 255), torch.randn(8, 3, 4, 4), torch.randint(3, (8, 4, 4))),
        (LeastSquares(), torch.randn(8, 3), torch.randn(8, 3)),
    ],
)
def test_sums_add_and_agree_with_the_loss(objective: Objective, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    whole = objective.summary(objective.sums(outputs, targets))
    parts = objective.sums(outputs[:3], targets[:3]) + objective.sums(outputs[3:], targets[3:])
    assert objective.summary(parts) == pytest.approx(whole, rel=1e-6)
    assert whole["loss"] == pytest.approx(float(objective.loss(outputs, targets)), rel=1e-5)
    assert objective.metric in whole
