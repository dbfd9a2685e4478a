"""Low-rank adapters of a frozen model (arXiv:2106.09685)."""

from __future__ import annotations

from torch import Tensor, nn


class Adapted(nn.Module):
    """A frozen linear layer plus ``up(down(x))``; ``up`` starts at zero, so that the function starts as it was.

    Args:
        base: the layer; its parameters are frozen.
        rank: outputs of ``down``, >= 1.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[..., out_features]`` of inputs ``[..., in_features]``."""
        outputs: Tensor = self.base(x) + self.up(self.down(x))
        return outputs


def adapt(model: nn.Module, rank: int) -> nn.Module:
    """Freeze ``model`` and give every linear layer inside its blocks an adapter, in place.

    Raises:
        ValueError: the rank is below 1, or there is no such layer.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    model.requires_grad_(False)
    found = [
        (parent, name, layer)
        for path, parent in model.named_modules()
        if path.startswith("blocks.")
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    if not found:
        raise ValueError("the model has no linear layers inside blocks to adapt")
    for parent, name, layer in found:
        setattr(parent, name, Adapted(layer, rank))
    return model
