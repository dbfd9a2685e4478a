"""Images that are shifted and mirrored at random whenever they are drawn: the usual augmentation of CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lnb_bench.training.data.splits import ImageSplit


@dataclass(frozen=True)
class AugmentedSplit:
    """The batches of ``split``, each image shifted by up to ``reach`` pixels both ways and mirrored with probability 1/2.

    What the shift uncovers is zero, the mean colour of standardised images. Draws come from torch's global generator, whose
    state a checkpoint keeps, so that a resumed run draws what it would have drawn.
    """

    split: ImageSplit
    reach: int = 4

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs ``[n, C, H, W]`` float32 and labels int64."""
        inputs, labels = self.split.batch(indices, device)
        count, _, height, width = inputs.shape
        down, right = torch.randint(0, 2 * self.reach + 1, (2, count, 1))
        mirrored = torch.rand(count, 1) < 0.5
        columns = torch.arange(width).expand(count, -1)
        rows = (down + torch.arange(height)).to(device)  # [n, H]
        columns = (right + torch.where(mirrored, width - 1 - columns, columns)).to(device)  # [n, W]
        padded = F.pad(inputs, [self.reach] * 4).permute(0, 2, 3, 1)
        image = torch.arange(count, device=device)[:, None, None]
        return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous(), labels
