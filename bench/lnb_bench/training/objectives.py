"""What a task minimises and what it reports: loss for training, additive sums for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOWER_IS_BETTER = ("loss", "relative_error", "squared_error")
"""The figures of merit of which less is better; of all others more is."""


class Objective(Protocol):
    """A loss, and the figures of merit of a whole split as sums that add over batches."""

    @property
    def metric(self) -> str:
        """The figure of merit that the task is judged by, one of the names in :meth:`summary`."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger :attr:`metric` is the better one."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar to minimise: a mean over the batch."""
        ...

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A float64 vector that adds over the batches of a split."""
        ...

    def summary(self, sums: Tensor) -> dict[str, float]:
        """The figures of merit, ``loss`` among them, from the added vector."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross-entropy over the last dimension of the logits; reports ``loss`` and ``accuracy``."""

    metric: str = "accuracy"
    higher_is_better: bool = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; logits ``[..., classes]``, targets ``[...]``."""
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropies, number of hits, number of targets."""
        hits = (outputs.argmax(-1) == targets).sum()
        loss = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum")
        return torch.stack([loss.double(), hits.double(), torch.full_like(loss, targets.numel(), dtype=torch.float64)])

    def summary(self, sums: Tensor) -> dict[str, float]:
        """``loss`` and ``accuracy``."""
        loss, hits, count = sums.tolist()
        return {"loss": loss / count, "accuracy": hits / count}


@dataclass(frozen=True)
class NextToken(Classification):
    """:class:`Classification` of the next token, judged by its loss in nats per token."""

    metric: str = "loss"
    higher_is_better: bool = False


@dataclass(frozen=True)
class Segmentation:
    """Cross-entropy per pixel without the void pixels; reports ``loss``, ``pixel_accuracy`` and ``mean_iou``.

    The mean intersection over union is over the classes that occur in the targets or the predictions.
    """

    classes: int
    void: int
    metric: str = "pixel_accuracy"
    higher_is_better: bool = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; logits ``[n, classes, H, W]``, targets ``[n, H, W]``."""
        return F.cross_entropy(outputs, targets, ignore_index=self.void)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The confusion matrix (target rows, prediction columns), flattened, then the sum of the cross-entropies."""
        loss = F.cross_entropy(outputs, targets, ignore_index=self.void, reduction="sum")
        seen = targets != self.void
        cells = targets[seen] * self.classes + outputs.argmax(1)[seen]
        confusion = torch.bincount(cells, minlength=self.classes**2)
        return torch.cat([confusion.double(), loss.double()[None]])

    def summary(self, sums: Tensor) -> dict[str, float]:
        """``loss``, ``pixel_accuracy`` and ``mean_iou``."""
        confusion = sums[:-1].view(self.classes, self.classes)
        hits, count = confusion.diagonal(), confusion.sum()
        union = confusion.sum(0) + confusion.sum(1) - hits
        occurs = union > 0
        return {
            "loss": float(sums[-1] / count),
            "pixel_accuracy": float(hits.sum() / count),
            "mean_iou": float((hits[occurs] / union[occurs]).mean()),
        }


@dataclass(frozen=True)
class LeastSquares:
    """Half the squared error per row; reports ``loss`` and ``relative_error`` ``||Y^ - Y||_F / ||Y||_F``."""

    metric: str = "relative_error"
    higher_is_better: bool = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the rows of ``||y^ - y||^2 / 2``."""
        return 0.5 * (outputs - targets).square().sum(-1).mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error, squared target, number of rows."""
        error, size = (outputs - targets).double().square().sum(), targets.double().square().sum()
        return torch.stack([error, size, torch.full_like(error, len(targets))])

    def summary(self, sums: Tensor) -> dict[str, float]:
        """``loss`` and ``relative_error``."""
        error, size, rows = sums.tolist()
        return {"loss": 0.5 * error / rows, "relative_error": (error / size) ** 0.5}


@dataclass(frozen=True)
class Reconstruction:
    """Cross-entropy of pixels in [0, 1] from logits, summed over an image; reports ``loss`` and ``squared_error``."""

    metric: str = "squared_error"
    higher_is_better: bool = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the images of the sum over their pixels; both ``[n, pixels]``."""
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(targets)

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropies, squared error, number of images."""
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum").double()
        error = (outputs.sigmoid() - targets).double().square().sum()
        return torch.stack([loss, error, torch.full_like(error, len(targets))])

    def summary(self, sums: Tensor) -> dict[str, float]:
        """``loss`` and ``squared_error``, both of an image."""
        loss, error, count = sums.tolist()
        return {"loss": loss / count, "squared_error": error / count}
