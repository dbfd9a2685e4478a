"""Cases of the statistics of 2-d convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from fuzz.bounds import allowed, wide
from fuzz.case import Case, Values
from fuzz.draw import DTYPES, Draw
from fuzz.ops_products import finish
from torch import Tensor

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")
KINDS = {"kernel_size": "pair", "stride": "pair", "padding": "pair", "dilation": "pair", "groups": "at least 1"}
FREE = {("groups", "True")}


def geometry(draw: Draw) -> tuple[dict[str, str], tuple[int, int, int, int], int]:
    """The text of a convolution's arguments, the shape of an input that fits, and the entries of a patch."""
    random = draw.random

    def pair(*values: int) -> str | int:
        first = random.choice(values)
        return first if draw.chance(0.5) else f"({first}, {random.choice(values)})"

    groups = random.choice((1, 1, 1, 2, 3, 4))
    channels = groups * random.choice((1, 1, 2, 3, 4))
    kernel = pair(1, 2, 3, 3, 5)
    stride, dilation = pair(1, 1, 1, 2, 3), pair(1, 1, 1, 2)
    padding: str | int = pair(0, 0, 1, 2, 3)
    if draw.chance(0.15):
        padding = '"valid"'
    elif draw.chance(0.2):
        padding, stride = '"same"', 1
    text = dict(zip(GEOMETRY, map(str, (kernel, stride, padding, dilation, groups)), strict=True))
    kh, kw = both(eval(text["kernel_size"]))
    dh, dw = both(eval(text["dilation"]))
    height = dh * (kh - 1) + 1 + random.choice((0, 0, 1, 2, 5, 9, 13))
    width = dw * (kw - 1) + 1 + random.choice((0, 0, 1, 3, 6, 11, 16))
    batch = random.choice((0, 1, 1, 2, 3, 5)) if draw.chance(0.5) else random.choice((1, 2))
    return text, (batch, channels, height, width), channels // groups * kh * kw


def both(value: Any) -> tuple[int, int]:
    """An int or a pair as a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def patches(x: Tensor, values: Values) -> Tensor:
    """The rows ``[groups, N, D]`` that a convolution multiplies, in float64; ``x`` is ``[B, C, H, W]``."""
    kernel, stride, dilation = (both(values[name]) for name in ("kernel_size", "stride", "dilation"))
    padding, groups = values["padding"], values["groups"]
    image = x.double()
    if padding == "same":
        down, across = (dilation[i] * (kernel[i] - 1) for i in (0, 1))
        image = F.pad(image, (across // 2, across - across // 2, down // 2, down - down // 2))
    elif padding != "valid":
        down, across = both(padding)
        image = F.pad(image, (across, across, down, down))
    batch, channels = image.shape[:2]
    cut = image.unfold(2, dilation[0] * (kernel[0] - 1) + 1, stride[0])
    cut = cut.unfold(3, dilation[1] * (kernel[1] - 1) + 1, stride[1])
    cut = cut[..., :: dilation[0], :: dilation[1]]  # [B, C, H', W', kh, kw]
    rows = cut.reshape(batch, groups, channels // groups, *cut.shape[2:])
    rows = rows.permute(1, 0, 3, 4, 2, 5, 6)
    return rows.reshape(groups, -1, channels // groups * kernel[0] * kernel[1])


def patch_moments(x: Tensor, values: Values, out: torch.dtype) -> tuple[Tensor, Tensor]:
    """The second moment of patches ``[groups, D+1, D+1]`` and the error allowed.

    A route by whole images adds and takes away what borders leave out, so the magnitude of a product is bounded by the norms of
    the two channels over the whole image (Cauchy-Schwarz), not by the patches' own.
    """
    image = x if x.dim() == 4 else x.unsqueeze(0)
    rows = patches(image, values)
    ones = torch.cat((rows, torch.ones(*rows.shape[:2], 1, dtype=torch.float64)), 2)
    want = ones.mT @ ones
    kernel, groups = both(values["kernel_size"]), values["groups"]
    taps = kernel[0] * kernel[1]
    norms = image.double().square().sum((0, 2, 3)).sqrt().reshape(groups, -1).repeat_interleave(taps, 1)
    sums = image.double().abs().sum((0, 2, 3)).reshape(groups, -1).repeat_interleave(taps, 1)
    size = torch.zeros_like(want)
    size[:, :-1, :-1] = norms.unsqueeze(2) * norms.unsqueeze(1)
    size[:, -1, :-1] = size[:, :-1, -1] = sums
    size[:, -1, -1] = rows.shape[1]
    terms = image[:, 0].numel() + rows.shape[1]
    return want, allowed(want, 2 * size, terms, wide(x), out)


def conv2d_second_moment(draw: Draw) -> Case:
    text, shape, _ = geometry(draw)
    if draw.chance(0.15):
        shape = shape[1:]
    # What is not finite may spread over a channel: routes differ in what they take away again.
    x = draw.tensor(shape, draw.dtype(*DTYPES), spikes=False)
    case = Case("conv2d_second_moment", {"x": x, **text}, truth_conv2d_second_moment)
    return finish(draw, case, {"x": "tensor", **KINDS}, FREE | {("x", "meta")})


def truth_conv2d_second_moment(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    return {"result": patch_moments(before["x"], before, wide(before["x"]))}


def conv2d_cov_matvec(draw: Draw) -> Case:
    text, shape, features = geometry(draw)
    rows = int(text["groups"]) * draw.random.choice((0, 1, 2, 3))
    if draw.chance(0.15):
        shape = shape[1:]
    one = draw.dtype(*DTYPES)
    arguments = {
        "x": draw.tensor(shape, one, spikes=False),
        "v": draw.tensor((rows, features + draw.random.randrange(2)), one if draw.chance(0.7) else draw.dtype(*DTYPES)),
        **text,
        "ridge": repr(draw.number(0.0, 0.1, 1.0)),
    }
    case = Case("conv2d_cov_matvec", arguments, truth_conv2d_cov_matvec, names={"x": ("v",)})
    return finish(draw, case, {"x": "tensor", "v": "tensor", **KINDS, "ridge": "ridge"}, FREE)


def truth_conv2d_cov_matvec(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    x, v, ridge = before["x"], before["v"], before["ridge"]
    rows = patches(x if x.dim() == 4 else x.unsqueeze(0), before)  # [groups, N, D]
    groups, count, d = rows.shape
    has_bias = v.shape[1] > d
    if has_bias:
        rows = torch.cat((rows, torch.ones(groups, count, 1, dtype=torch.float64)), 2)
    vectors = v.double().reshape(groups, v.shape[0] // groups, v.shape[1])
    ridges = torch.full((v.shape[1],), float(ridge), dtype=torch.float64)
    ridges[d:] = 0.0
    want = vectors @ rows.mT @ rows / max(count, 1) + ridges * vectors
    middle = vectors.abs() @ rows.mT.abs()
    size = middle @ rows.abs() / max(count, 1) + ridges * vectors.abs()
    limit = torch.finfo(wide(x, v)).max / 4
    if count:
        size = torch.where((middle.amax(2, keepdim=True) < limit) & (size * count < limit), size, math.inf)
    lost = rows.abs().sum(1, keepdim=True)
    bound = allowed(want, size, count + d, wide(x, v), v.dtype, lost).nan_to_num(math.inf, math.inf)
    return {"result": (want.reshape(v.shape), bound.reshape(v.shape))}


GENERATORS = {"conv2d_second_moment": conv2d_second_moment, "conv2d_cov_matvec": conv2d_cov_matvec}
