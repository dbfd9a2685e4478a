"""``nn.MultiheadAttention``: its in-projections. Its ``out_proj`` is attached as the linear layer that it is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lnb.layers.attention_forward import attend, is_regular
from lnb.layers.capture import Capture
from lnb.layers.kind import LayerKind
from lnb.layers.linear import ProbedLinear
from lnb.layers.packed import PackedCapture
from lnb.layers.probed import ProbedLayer

_PACKED = "in_proj_weight"


class ProbedMultiheadAttention(ProbedLayer, nn.MultiheadAttention):
    """An attached ``nn.MultiheadAttention``."""

    _lnb_original = nn.MultiheadAttention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The original's result; the original itself computes it unless the inputs of a projection are captured."""
        out = self.out_proj
        captures = _captures_now(self) or (isinstance(out, ProbedLayer) and _captures_now(out))
        arguments = query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        regular = is_regular(self, query, key, value, key_padding_mask, attn_mask, is_causal)
        if not (captures and regular and torch.is_grad_enabled()):
            return nn.MultiheadAttention.forward(self, *arguments)
        project = ProbedLinear.forward if isinstance(out, ProbedLinear) else nn.Linear.forward
        return attend(self, self._lnb_captures, partial(project, out), *arguments)  # type: ignore[arg-type]


def _captures_now(module: ProbedLayer) -> bool:
    """Whether a forward pass with gradients would gather anything."""
    return any(
        (capture.moments_on or capture.inputs_on) and getattr(module, name).requires_grad
        for name, capture in module._lnb_captures.items()
    )


class AttentionKind(LayerKind):
    """``nn.MultiheadAttention``: one packed in-projection of three groups, or three in-projections."""

    original = nn.MultiheadAttention
    probed = ProbedMultiheadAttention
    words = "in-projection"

    def weights(self, module: nn.Module) -> dict[str, str | None]:
        """The in-projections: their one bias belongs to the packed one only."""
        if module._parameters.get(_PACKED) is not None:
            return {_PACKED: "in_proj_bias"}
        return {"q_proj_weight": None, "k_proj_weight": None, "v_proj_weight": None}

    def captures(self, module: nn.Module) -> dict[str, Capture]:
        """One for each in-projection."""
        attention = cast(nn.MultiheadAttention, module)
        if attention._qkv_same_embed_dim:
            return {_PACKED: PackedCapture(attention.embed_dim)}
        return {name: Capture(getattr(attention, name).shape[1]) for name in self.weights(module)}

    def uncalled(self, module: nn.Module) -> Iterable[nn.Module]:
        """PyTorch's forward reads the weights of the out-projection itself."""
        return (cast(nn.MultiheadAttention, module).out_proj,)

    def groups(self, module: nn.Module, weight: str) -> int:
        """Three for a packed in-projection: query, key and value."""
        return 3 if self.is_packed(weight) else 1

    def is_packed(self, weight: str) -> bool:
        """Whether it is ``in_proj_weight``."""
        return weight == _PACKED
