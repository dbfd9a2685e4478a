"""Small models of the usual kinds, built of plain ``torch.nn`` layers."""

from __future__ import annotations

from lnb.training.models.cnn import CNN
from lnb.training.models.factors import Factors
from lnb.training.models.gpt import GPT
from lnb.training.models.mlp import MLP
from lnb.training.models.unet import UNet
from lnb.training.models.vit import ViT

__all__ = ["CNN", "GPT", "MLP", "Factors", "UNet", "ViT"]
