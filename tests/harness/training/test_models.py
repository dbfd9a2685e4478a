"""Models: output shapes, a gradient for every parameter, causality, options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lnb_bench.training.models import CNN, GPT, MLP, Factors, UNet, ViT


@pytest.mark.parametrize(
    ("model", "x", "shape"),
    [
        (MLP(784, 10), torch.rand(3, 1, 28, 28), (3, 10)),
        (MLP(64, 10, width=16, depth=3, activation="relu"), torch.rand(3, 1, 8, 8), (3, 10)),
        (MLP(64, 10, depth=0), torch.rand(3, 1, 8, 8), (3, 10)),
        (UNet(3, 11), torch.rand(2, 3, 64, 64), (2, 11, 64, 64)),
        (UNet(3, 11, width=4, depth=1), torch.rand(2, 3, 8, 6), (2, 11, 8, 6)),
        (CNN(3, 32, 10), torch.rand(2, 3, 32, 32), (2, 10)),
        (CNN(1, 28, 10, width=4, depth=2), torch.rand(2, 1, 28, 28), (2, 10)),
        (ViT(3, 32, 10), torch.rand(2, 3, 32, 32), (2, 10)),
        (ViT(1, 8, 10, width=16, depth=2, heads=2, patch=2), torch.rand(2, 1, 8, 8), (2, 10)),
        (GPT(65), torch.randint(65, (2, 128)), (2, 128, 65)),
        (GPT(65, context=32, width=16, depth=1, heads=2), torch.randint(65, (2, 9)), (2, 9, 65)),
        (Factors(6, 10, 6), torch.rand(5, 6, dtype=torch.float64), (5, 10)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_forward_and_backward(model: nn.Module, x: torch.Tensor, shape: tuple[int, ...]) -> None:
    output = model(x)
    assert output.shape == shape
    assert output.isfinite().all()
    output.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_unet_has_no_normalisation_and_needs_even_sides() -> None:
    model = UNet(3, 11)
    assert not any("Norm" in type(module).__name__ for module in model.modules())
    with pytest.raises(ValueError, match="multiples of 8"):
        model(torch.rand(1, 3, 12, 16))


def test_gpt_does_not_look_ahead() -> None:
    model = GPT(11, context=8, width=16, depth=2, heads=2)
    tokens = torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_vit_patches_are_contiguous_squares() -> None:
    model = ViT(1, 8, 10, width=16, depth=1, heads=2, patch=4)
    seen: list[torch.Tensor] = []
    model.embed.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    image = torch.arange(64.0).view(1, 1, 8, 8)
    model(image)
    assert torch.equal(seen[0][0, 1].view(4, 4), image[0, 0, :4, 4:])


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="activation='gelu' must be one of tanh, relu"):
        MLP(4, 2, activation="gelu")
    with pytest.raises(ValueError, match="patch=5 must divide"):
        ViT(3, 32, 10, patch=5)
    with pytest.raises(ValueError, match="width=10 must be a multiple of heads=4"):
        GPT(5, width=10)


def test_initialisation() -> None:
    mlp = MLP(784, 10)
    first = mlp.layers[1]
    assert isinstance(first, nn.Linear)
    assert first.weight.std().item() == pytest.approx((2 / (784 + 800)) ** 0.5, rel=0.02)
    assert first.bias.abs().max() == 0
