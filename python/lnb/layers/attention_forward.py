"""The forward pass of an ``nn.MultiheadAttention`` whose in- and out-projections report their inputs' second moments.

``nn.MultiheadAttention.forward`` reads its weights itself and calls no layer, so the forward pass is written out here: the
same operations in the same order, which makes results and gradients those of the original bit for bit. Where nothing
is captured (evaluation, no gradients, no optimizer, frozen weights) the original runs, with its fused fast path.

The packed weight ``in_proj_weight`` is three matrices, and each gets the metric of its own input: one second moment
serves all three in self-attention, and two or three are gathered where query, key and value differ.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnb.layers.capture import Capture
from lnb.layers.linear import project as project_input
from lnb.layers.packed import SERVES, PackedCapture


def is_regular(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> bool:
    """Whether the arguments are valid. If not, the original forward is to run, and to say why."""
    if any(x.is_nested or x.dim() != query.dim() for x in (query, key, value)) or query.dim() not in (2, 3):
        return False
    if is_causal and attn_mask is None:
        return False
    if key.shape[:-1] != value.shape[:-1] or query.shape[-1] != attention.embed_dim:
        return False
    if key.shape[-1] != attention.kdim or value.shape[-1] != attention.vdim:
        return False
    position, batch = (1, 0) if attention.batch_first else (0, 1)
    if query.dim() == 2:
        length, sources, samples, mask_shape = query.shape[0], key.shape[0], 1, key.shape[:1]
    else:
        if query.shape[batch] != key.shape[batch]:
            return False
        length, sources, samples = query.shape[position], key.shape[position], query.shape[batch]
        mask_shape = torch.Size((samples, sources))
    for mask in (key_padding_mask, attn_mask):
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            return False
    if key_padding_mask is not None and key_padding_mask.shape != mask_shape:
        return False
    allowed = ((length, sources), (samples * attention.num_heads, length, sources))
    return attn_mask is None or tuple(attn_mask.shape) in allowed


def attend(
    attention: nn.MultiheadAttention,
    captures: dict[str, Capture],
    out_projection: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward`` on regular arguments, capturing the inputs of its projections.

    Args:
        attention: the module.
        captures: its captures, by the names of its in-projections.
        out_projection: applies the out-projection to ``[L * N, E]``.
        query: and the others: see ``nn.MultiheadAttention``.
    """
    batched = query.dim() == 3
    batch_first = attention.batch_first and batched
    padding = _added(key_padding_mask, query.dtype)
    mask = _added(attn_mask, query.dtype)
    if is_causal and padding is None and not need_weights:
        mask = None  # the attention kernel masks by itself
    is_causal = is_causal and padding is None and mask is None

    # How many products project the inputs depends on which of them are one: the layout is changed as torch changes it.
    if not batched:
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
    elif batch_first:
        own_query, own_value = key is not query, value is not key
        key = key.transpose(1, 0)
        query = query.transpose(1, 0) if own_query or own_value else key
        value = value.transpose(1, 0) if own_value else key
    q, k, v = _project(attention, captures, query, key, value)

    length, samples, width = q.shape
    heads = attention.num_heads
    mask = mask.unsqueeze(0) if mask is not None and mask.dim() == 2 else mask
    if attention.bias_k is not None and attention.bias_v is not None:
        k = torch.cat([k, attention.bias_k.repeat(1, samples, 1)])
        v = torch.cat([v, attention.bias_v.repeat(1, samples, 1)])
        mask, padding = _one_more_source(mask), _one_more_source(padding)
    q, k, v = (x.reshape(x.shape[0], samples * heads, -1).transpose(0, 1) for x in (q, k, v))  # [N * H, L, E / H]
    if attention.add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], dim=1) for x in (k, v))
        mask, padding = _one_more_source(mask), _one_more_source(padding)
    sources = k.shape[1]
    if padding is not None:
        spread = padding.view(samples, 1, 1, sources).expand(-1, heads, -1, -1).reshape(samples * heads, 1, sources)
        mask = spread if mask is None else mask + spread
    dropout = attention.dropout if attention.training else 0.0

    weights: Tensor | None = None
    if need_weights:
        scaled = q * math.sqrt(1.0 / q.shape[-1])
        scores = torch.bmm(scaled, k.mT) if mask is None else torch.baddbmm(mask, scaled, k.mT)
        weights = F.softmax(scores, dim=-1)
        if dropout > 0:
            weights = F.dropout(weights, dropout)
        mixed = torch.bmm(weights, v).transpose(0, 1).reshape(length * samples, width)
        weights = weights.view(samples, heads, length, sources)
        weights = weights.mean(dim=1) if average_attn_weights else weights
    else:
        if mask is not None:
            one = mask.shape[0] == 1
            mask = mask.unsqueeze(0) if one else mask.view(samples, heads, -1, sources)
        q, k, v = (x.view(samples, heads, x.shape[1], -1) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        mixed = mixed.permute(2, 0, 1, 3).reshape(length * samples, width)
    output = cast(Tensor, out_projection(mixed)).view(length, samples, -1)
    if not batched:
        return output.squeeze(1), None if weights is None else weights.squeeze(0)
    return (output.transpose(1, 0) if batch_first else output), weights


def _project(
    attention: nn.MultiheadAttention, captures: dict[str, Capture], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The three in-projections ``[L, N, E]``, in as few products as the sameness of the inputs allows."""
    bias = attention.in_proj_bias
    width = attention.embed_dim
    if not attention._qkv_same_embed_dim:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        outputs = []
        for x, name, b in zip((query, key, value), captures, biases, strict=True):
            weight = getattr(attention, name)
            capture = captures[name]
            outputs.append(project_input(x, weight, b, capture, weight))
            capture.keep(weight, x, outputs[-1])
            capture.count(weight, x, outputs[-1], outputs[-1].numel() // width)
        return outputs[0], outputs[1], outputs[2]
    weight = attention.in_proj_weight
    parts = cast(PackedCapture, captures["in_proj_weight"]).parts

    def project(x: Tensor, name: str, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
        output = project_input(x, w, b, parts[name], weight)
        parts[name].count(weight, x, output, output.numel() // output.shape[-1])
        count = len(SERVES[name])
        return output.unflatten(-1, (count, width)).movedim(-2, 0).contiguous().unbind(0) if count > 1 else (output,)

    if key is not value:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        inputs = zip((query, key, value), "qkv", weight.chunk(3), biases, strict=True)
        q, k, v = (project(*each)[0] for each in inputs)
        return q, k, v
    if query is key:
        q, k, v = project(query, "qkv", weight, bias)
        return q, k, v
    weights, sizes = weight.split([width, 2 * width]), [width, 2 * width]
    split = (None, None) if bias is None else bias.split(sizes)
    (q,) = project(query, "q", weights[0], split[0])
    k, v = project(key, "kv", weights[1], split[1])
    return q, k, v


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as what is added to the scores: ``-inf`` where a boolean one is True."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _one_more_source(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else F.pad(mask, (0, 1))
