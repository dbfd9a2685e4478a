"""Small models of the usual kinds, built of plain ``torch.nn`` layers."""

from __future__ import annotations

from lnb_bench.training.models.autoencoder import Autoencoder
from lnb_bench.training.models.cnn import CNN
from lnb_bench.training.models.convnext import ConvNeXt
from lnb_bench.training.models.factors import Factors
from lnb_bench.training.models.gpt import GPT
from lnb_bench.training.models.mlp import MLP
from lnb_bench.training.models.resnet import ResNet
from lnb_bench.training.models.unet import UNet
from lnb_bench.training.models.vit import ViT

__all__ = ["CNN", "GPT", "MLP", "Autoencoder", "ConvNeXt", "Factors", "ResNet", "UNet", "ViT"]
