"""Cases of the ops that only the optimizer calls: flags of second moments, and the passes of a fused step."""

from __future__ import annotations

from typing import Any

import torch
from fuzz.bounds import allowed
from fuzz.case import Case, Values
from fuzz.corrupt import corrupted
from fuzz.draw import DTYPES, Draw
from fuzz.ops_solvers import block_diagonal
from torch import Tensor

CALL = """
from lnb_kernels import fused_step
result = fused_step.{op}({given})
""".strip()
NARROW = ("torch.float32", "torch.float32", "torch.bfloat16", "torch.float16")


def moment_flags(draw: Draw) -> Case:
    moments = []
    for _ in range(draw.random.choice((1, 1, 2, 3, 5))):
        lead = draw.shape(draw.random.choice((0, 1, 2)), 6)
        n = draw.random.choice((1, 2, 3, 5, 17, 130))
        moments.append(draw.tensor((*lead, n, n), draw.dtype(*DTYPES)))
    case = Case("multi_tensor.moment_flags", {"moments": f"[{', '.join(moments)}]"}, truth_moment_flags)
    case.backend = draw.random.choice(("auto", "reference"))
    case.may_refuse = {why for why in draw.unusual if why == "wrapped"}
    if draw.chance(0.2) and not draw.unusual:
        free = {("moments", "length"), *({("moments", "meta")} if len(moments) == 1 else ())}
        return corrupted(draw, case, {"moments": "tensors"}, frozenset(free))
    return case


def truth_moment_flags(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    moments = [moment.double() for moment in before["moments"]]
    sums = [bool(moment[..., -1, :].isfinite().all()) for moment in moments]
    squares = [bool(moment.diagonal(dim1=-2, dim2=-1).isfinite().all()) for moment in moments]
    return {"result": (torch.tensor([sums, squares]), "bits")}


def direct_layers(draw: Draw) -> Case:
    gradient, direction = draw.dtype(*NARROW), draw.dtype("torch.float32", "torch.float32", "torch.bfloat16")
    names = ("directions", "momentum", "gradients", "bias_gradients", "bias_momentum", "inverses", "means", "roots")
    lists: dict[str, list[str]] = {name: [] for name in names}
    count, rows, partials = draw.random.choice((1, 1, 2, 3)), 0, 0
    for _ in range(count):
        size, blocks = draw.random.choice((1, 2, 3, 8, 16)), draw.random.choice((1, 1, 2, 3))
        side, cuts = draw.random.choice((1, 2, 3, 8, 9)), draw.random.choice((1, 1, 2))
        lead = draw.random.choice(((), (), (1,), (2,)))
        shape = (*lead, side * cuts, size * blocks)
        scale = 1.0 if draw.plain or draw.chance(0.6) else draw.random.choice((1e-3, 1e3))
        own = (lead[0] if lead else 1) * side * cuts
        given = {
            "directions": draw.tensor(shape, direction, written=True, spikes=False),
            "momentum": draw.tensor(shape, "torch.float32", scale=scale, written=True, spikes=False),
            "gradients": draw.tensor(shape, gradient, scale=scale, spikes=False),
            "inverses": f"spd({draw.seed()}, {(*lead, blocks)}, {size}, torch.float32, 0.5)",
            "roots": f"spd({draw.seed()}, {(*lead, cuts)}, {side}, torch.float32, 0.5, {draw.pick(1.0, 1.0, 1e-9)})",
            "bias_gradients": "None", "bias_momentum": "None", "means": "None",
        }  # fmt: skip
        if draw.chance(0.6):
            given["bias_gradients"] = draw.tensor((own,), gradient, scale=scale, spikes=False)
            given["bias_momentum"] = draw.tensor((own,), "torch.float32", scale=scale, spikes=False)
            given["means"] = draw.tensor((*lead, size * blocks), "torch.float32", scale=0.3, spikes=False)
        for name, text in given.items():
            lists[name].append(text)
        rows += own
        partials += 6 * own * blocks
    arguments = {name: f"[{', '.join(lists[name])}]" for name in ("directions", "momentum")}
    arguments |= {
        "partials": f"normal({draw.seed()}, ({partials},), torch.float64)",
        "mixed_biases": f"normal({draw.seed()}, ({rows},), torch.float64)",
    }
    arguments |= {name: f"[{', '.join(lists[name])}]" for name in names[2:]}
    arguments |= {
        "shares": f"positive({draw.seed()}, ({count},), torch.float64)",
        "bias_shares": f"positive({draw.seed()}, ({count},), torch.float64)",
        "decay": repr(draw.random.choice((0.0, 0.5, 0.9, 1.0))), "take": repr(draw.random.choice((0.0, 0.05, 1.0))),
        "ok": draw.flag(), "precision": repr(draw.random.choice(("tf32", "tf32x3", "bf16"))),
    }  # fmt: skip
    kinds = {**dict.fromkeys(("directions", "momentum", "gradients", "inverses", "roots"), "tensors")}
    kinds |= {"partials": "tensor", "mixed_biases": "tensor", "shares": "tensor", "decay": "share", "ok": "flag"}
    given_names = ", ".join(f"{name}={name}" for name in arguments)
    singular = {"momentum": ("momentum",), "gradients": ("gradient",), "inverses": ("inverse",), "roots": ("root",)}
    case = Case(
        "fused_step.direct_layers_", arguments, truth_direct_layers,
        ("directions", "momentum", "partials", "mixed_biases"), names=singular,
        call=CALL.format(op="direct_layers_", given=given_names),
    )  # fmt: skip
    case.backend = draw.random.choice(("auto", "reference"))
    case.may_refuse = set(draw.unusual)
    if draw.chance(0.2) and not draw.unusual:
        return corrupted(draw, case, kinds)
    return case


def truth_direct_layers(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    """Averages, directions, and the squared norms of gradients; nothing changes where ``ok`` is False."""
    found: dict[str, tuple[Any, Any]] = {}
    entry = 0
    sums, errors = before["partials"].clone(), torch.zeros_like(before["partials"])
    for i, (m, g) in enumerate(zip(before["momentum"], before["gradients"], strict=True)):
        if before["ok"] is not None and not before["ok"]:
            found[f"momentum[{i}]"] = (m, "bits")
            found[f"directions[{i}]"] = (before["directions"][i], "bits")
            continue
        average, size = _averaged(m, g, before["decay"])
        found[f"momentum[{i}]"] = (average, allowed(average, size, 2, torch.float32, torch.float32))
        root, inverse = before["roots"][i].double(), before["inverses"][i].double()
        root = root * torch.ldexp(torch.ones(()).double(), -torch.frexp(root.abs().amax((-2, -1), keepdim=True))[1])
        share, take = before["shares"][i].double(), before["take"]
        ahead, size = share * average + take * g.double(), share * size + take * g.double().abs()
        if before["means"][i] is not None:
            own, of_own = _averaged(before["bias_momentum"][i], before["bias_gradients"][i], before["decay"])
            bias = before["bias_shares"][i].double() * own + take * before["bias_gradients"][i].double()
            of_bias = before["bias_shares"][i].double() * of_own + take * before["bias_gradients"][i].double().abs()
            mean = before["means"][i].double().unsqueeze(-2)
            ahead = ahead - bias.view(*m.shape[:-1], 1) * mean
            size = size + of_bias.view(*m.shape[:-1], 1) * mean.abs()
        left, right = block_diagonal(root), block_diagonal(inverse)
        want, magnitude = left @ ahead @ right, left.abs() @ size @ right.abs()
        terms = root.shape[-1] + inverse.shape[-1] + 4
        found[f"directions[{i}]"] = (
            want,
            allowed(want, magnitude, terms, torch.float32, before["directions"][i].dtype),
        )
        blocks, rows = inverse.shape[-3], m.shape[:-1].numel()
        squares = g.double().square().reshape(rows, blocks, -1).sum(-1).T  # [blocks, rows]
        place = torch.arange(blocks * rows) * 6 + entry + 5
        sums[place] = squares.flatten()
        limit = allowed(squares, squares, inverse.shape[-1], torch.float32, torch.float32)
        errors.fill_(float("inf")) if entry == 0 else None
        errors[place] = limit.flatten()
        entry += 6 * blocks * rows
    found["partials"] = (sums, errors if entry else "bits")
    return found


def _averaged(m: Tensor, g: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The new average in float64, and the sum of absolute values."""
    new = decay * m.double() + (1.0 - decay) * g.double().view_as(m)
    return new, decay * m.double().abs() + (1.0 - decay) * g.double().view_as(m).abs()


GENERATORS = {"multi_tensor.moment_flags": moment_flags, "fused_step.direct_layers_": direct_layers}
