"""Cases of the layers with moment probes: results and gradients equal PyTorch's to the bit, the probe's is a second moment."""

from __future__ import annotations

import math
from typing import Any

import torch
from fuzz.bounds import allowed, wide
from fuzz.case import Case, Values
from fuzz.corrupt import corrupted
from fuzz.draw import DTYPES, Draw
from fuzz.ops_conv import KINDS, geometry, patch_moments
from fuzz.ops_products import moments_of
from torch import Tensor

CALL = """
def grads(y, leaves):
    leaves = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    if not y.requires_grad:
        return []
    upstream = torch.linspace(-1, 1, y.numel()).to(y.dtype).reshape(y.shape)
    return [g for g in torch.autograd.grad(y, leaves, upstream, allow_unused=True) if g is not None]
y = lk.{op}({given})
plain_y = F.{op}({plain})
result = [[y, *grads(y, [x, weight, bias, {probes}])], [plain_y, *grads(plain_y, [x, weight, bias])]]
""".strip()


def leaf(text: str, wants: bool) -> str:
    """The text of a tensor, a leaf that requires a gradient if wanted. PyTorch's layers take no inference tensors either."""
    text = text.replace("inference(", "(").replace("conjugated(", "negated(")
    if (
        "negated(" in text
    ):  # a copy without the bit has no gaps, and the order of the sums of a gradient depends on them
        text = text.replace("strided(", "(").replace("padded(", "(")
    return f"with_grad({text})" if wants else text


def _finish(draw: Draw, case: Case, kinds: dict[str, str], plain: str, probes: str) -> Case:
    given = ", ".join(f"{name}={name}" for name in case.arguments)
    case.call = CALL.format(op=case.op, given=given, plain=plain, probes=probes)
    case.mode = draw.random.choice(("grad", "grad", "grad", "autocast", "no_grad"))
    case.backend = draw.random.choice(("auto", "auto", "reference"))
    case.may_refuse = {why for why in draw.unusual if why == "wrapped"}
    if draw.chance(0.2) and not draw.unusual and case.arguments["probe"] != "None":  # without one it is PyTorch's call
        case.mode = "grad"
        free = {("groups", "True"), ("probe", "dtype"), ("channel_probe", "dtype")}
        case = corrupted(draw, case, kinds, frozenset(free))
        if case.bad in ("probe", "channel_probe") and "torch." in case.fault:  # without a gradient it does not count
            case.arguments[case.bad] = f"({case.fault}).detach().requires_grad_()"
    return case


def _reading(draw: Draw) -> dict[str, str]:
    start = f"torch.tensor({round(draw.random.random(), 6)})"
    return {
        "sample": f"({start}, {draw.random.choice((1, 2, 3, 7))})" if draw.chance(0.3) else "None",
        "moment_dtype": draw.random.choice(DTYPES) if draw.chance(0.3) else "None",
    }


def as_plain(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    """The output and the gradients of what both layers have, to the bit."""
    _, theirs = after["result"]
    return {f"result[0][{i}]": (value, "bits") for i, value in enumerate(theirs)}


def seen(before: Values, after: Values) -> Tensor:
    """The input as the layer multiplies it: autocast may have rounded it."""
    x: Tensor = before["x"]
    return x if x.dtype == torch.float64 else x.to(after["result"][1][0].dtype)


def sampled(x: Tensor, before: Values) -> tuple[Tensor, float]:
    """The leading entries that are read, rounded, and what sums over them are multiplied by."""
    scale = 1.0
    if before["sample"] is not None:
        start, every = before["sample"]
        size = x.shape[0]
        count = -(-size // every)
        first = int(start.double() * size)
        x = x[[(first + every * k) % size for k in range(count)]]
        scale = size / max(count, 1)
    if before["moment_dtype"] is not None:
        x = x.to(before["moment_dtype"])
    return x, scale


def linear(draw: Draw) -> Case:
    d, m = draw.size(), draw.size()
    lead = draw.shape(draw.random.choice((0, 1, 1, 2, 3)), max(2_000 // max(d, m, 1), 1))
    dtype = draw.dtype(*DTYPES)
    grads = [draw.chance(0.7) for _ in range(3)]
    blocks = [n for n in range(1, d + 1) if d % n == 0]
    size: tuple[int, ...] = (d + 1, d + 1)
    if blocks and draw.chance(0.3):
        count = draw.random.choice(blocks)
        size = (count, d // count + 1, d // count + 1)
    probe = f"torch.zeros({size}, dtype={draw.random.choice((dtype, 'torch.float32', 'torch.float64'))})"
    if draw.chance(0.2):
        probe = f"torch.zeros(()).expand({size})"
    has_probe = draw.chance(0.85)
    arguments = {
        "x": leaf(draw.tensor((*lead, d), dtype), grads[0]),
        "weight": leaf(draw.tensor((m, d), dtype, spikes=False), grads[1]),
        "bias": leaf(draw.tensor((m,), dtype, spikes=False), grads[2]) if draw.chance(0.6) else "None",
        "probe": leaf(probe, True) if has_probe else "None",
        **_reading(draw),
    }
    kinds = {"x": "tensor", "weight": "tensor"}
    if arguments["bias"] != "None":
        kinds["bias"] = "tensor?"
    if has_probe:
        kinds |= {"probe": "tensor?", "sample": "sample", "moment_dtype": "dtype"}
    return _finish(draw, Case("linear", arguments, truth_linear), kinds, "x, weight, bias", "probe")


def truth_linear(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    found = as_plain(before, after)
    ours, probe = after["result"][0], before["probe"]
    if probe is None or len(ours) <= len(found):
        return found
    x = seen(before, after)
    rows, scale = sampled(x.reshape(x.shape[:-1].numel(), x.shape[-1]), before)
    want, size = moments_of(rows, None, probe.shape[0] if probe.dim() == 3 else None)
    bound = allowed(want, size, rows.shape[0], wide(x), probe.dtype)
    found[f"result[0][{len(found)}]"] = (scale * want, scale * bound)
    return found


def conv2d(draw: Draw) -> Case:
    text, shape, features = geometry(draw)
    groups = int(text["groups"])
    kernel = eval(text.pop("kernel_size"))
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    if draw.chance(0.15):
        shape = shape[1:]
    channels = shape[-3]
    dtype = draw.dtype(*DTYPES)
    x = draw.tensor(shape, dtype, spikes=False)
    if kernel == (1, 1):  # PyTorch's own weight gradient writes beyond its memory there, with a stride
        x = x.replace("channels_last(", "(")
    grads = [draw.chance(0.7) for _ in range(3)]
    m = groups * draw.random.choice((1, 2, 3))
    cuts = [n for n in range(groups, channels + 1, groups) if channels % n == 0]
    cut = draw.random.choice(cuts) if draw.chance(0.3) else groups
    size = features * groups // cut + 1
    arguments = {
        "x": leaf(x, grads[0]),
        "weight": leaf(draw.tensor((m, channels // groups, *kernel), dtype, spikes=False), grads[1]),
        "bias": leaf(draw.tensor((m,), dtype, spikes=False), grads[2]) if draw.chance(0.6) else "None",
        **text,
        "probe": f"torch.zeros({cut}, {size}, {size}, requires_grad=True)" if draw.chance(0.85) else "None",
        "channel_probe": f"torch.zeros(3, {channels}, requires_grad=True)" if draw.chance(0.3) else "None",
        **_reading(draw),
    }
    kinds = {"x": "tensor", "weight": "tensor", **KINDS}
    del kinds["kernel_size"]
    if arguments["bias"] != "None":
        kinds["bias"] = "tensor?"
    if arguments["probe"] != "None":
        kinds |= {"probe": "tensor?", "sample": "sample", "moment_dtype": "dtype"}
    if arguments["channel_probe"] != "None":
        kinds["channel_probe"] = "tensor?"
    plain = "x, weight, bias, stride, padding, dilation, groups"
    return _finish(draw, Case("conv2d", arguments, truth_conv2d), kinds, plain, "probe, channel_probe")


def truth_conv2d(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    found = as_plain(before, after)
    ours, probe, channels = after["result"][0], before["probe"], before["channel_probe"]
    if len(ours) <= len(found):
        return found
    x = seen(before, after)
    x = x if x.dim() == 4 else x.unsqueeze(0)
    if probe is not None:
        images, scale = sampled(x, before)
        values = {**before, "kernel_size": tuple(before["weight"].shape[2:]), "groups": probe.shape[0]}
        if images.double().isfinite().all():
            want, bound = patch_moments(images, values, torch.float32)
        else:
            want = torch.zeros(probe.shape, dtype=torch.float64)
            bound = torch.full_like(want, math.inf)
        found[f"result[0][{len(found)}]"] = (scale * want, scale * bound)
    if channels is not None:
        values = x.double()
        count = torch.full((x.shape[1],), x[:, 0].numel(), dtype=torch.float64)
        want = torch.stack((values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count))
        size = torch.stack((values.abs().sum((0, 2, 3)), want[1], count))
        bound = allowed(want, size, x[:, 0].numel(), wide(x), channels.dtype)
        found[f"result[0][{len(found)}]"] = (want, bound)
    return found


GENERATORS = {"linear": linear, "conv2d": conv2d}
