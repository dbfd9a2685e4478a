"""What the tests of moments share: a small model, its training, and the rows of its layers in float64."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def small_model(seed: int = 5) -> nn.Sequential:
    """A convolution, linear layers with and without a bias: 2x4x4 images to 3 outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)
    )


def images(count: int, seed: int) -> Tensor:
    """Images with an offset, so that means matter."""
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) + 0.5


def rows_of(module: nn.Module, x: Tensor) -> Tensor:
    """The rows that a layer sees, ``[groups, N, d_in]`` float64: by definition, not by the package."""
    x = x.detach().double()
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding: Any = module.padding if module.padding_mode == "zeros" else 0
        patches = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
        return patches.unflatten(1, (module.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return x.reshape(1, -1, x.shape[-1])


def train(model: nn.Module, optimizer: Any, steps: int) -> dict[str, list[Tensor]]:
    """Some steps; the rows of every layer, step by step."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen[name].append(rows_of(m, args[0])))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    for step in range(steps):
        optimizer.zero_grad()
        model(images(16, step)).square().mean().backward()
        optimizer.step()
    for handle in handles:
        handle.remove()
    return seen
