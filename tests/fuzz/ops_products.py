"""Cases of second moments, products with them, and arrow solves."""

from __future__ import annotations

import math
from typing import Any

import torch
from fuzz.bounds import allowed, quantum, wide
from fuzz.case import Case, Values
from fuzz.corrupt import corrupted
from fuzz.draw import DTYPES, Draw
from torch import Tensor


def finish(draw: Draw, case: Case, kinds: dict[str, str], free: set[tuple[str, str]] | None = None) -> Case:
    """The backend, the mode, and sometimes one wrong argument."""
    case.backend = draw.random.choice(("auto", "auto", "reference"))
    case.may_refuse |= {why for why in draw.unusual if why == "wrapped" or (case.written and why != "subclass")}
    if draw.chance(0.2):
        return case if case.may_refuse or draw.unusual else corrupted(draw, case, kinds, frozenset(free or ()))
    if draw.chance(0.1):
        case.mode = draw.random.choice(("grad", "inference", "autocast"))
        if case.mode == "inference" and "wrapped" in draw.unusual:  # PyTorch has no views of such tensors there
            case.mode = "grad"
    elif draw.plain and not case.written and draw.chance(0.1):
        case.fake = True
    return case


def second_moment(draw: Draw) -> Case:
    shape = draw.shape(draw.random.choice((1, 2, 2, 2, 3)), 8_000)
    while shape[-1] > 300:
        shape = draw.shape(2, 8_000)
    dtype = draw.dtype(*DTYPES)
    divisors = [n for n in range(1, shape[-1] + 1) if shape[-1] % n == 0]
    blocks = str(draw.random.choice(divisors)) if divisors and draw.chance(0.3) else "None"
    weighted = draw.chance(0.3)
    arguments = {
        "x": draw.tensor(shape, dtype),
        "weights": draw.tensor(shape[:-1], draw.dtype(*DTYPES), scale=1.0) if weighted else "None",
        "blocks": blocks,
    }
    case = Case("second_moment", arguments, truth_second_moment)
    free = {("blocks", "None")} | (set() if weighted else {("x", "shape"), ("x", "meta")})
    kinds = {"x": "tensor", "weights": "tensor?", "blocks": "at least 1"}
    return finish(draw, case, kinds if weighted else {"x": "tensor", "blocks": "at least 1"}, free)


def moments_of(x: Tensor, weights: Tensor | None, blocks: int | None) -> tuple[Tensor, Tensor]:
    """``sum w [x 1]'[x 1]`` of each block in float64, and the same of absolute values."""
    rows = x.double().reshape(x.shape[:-1].numel(), x.shape[-1])
    w = torch.ones(rows.shape[0], dtype=torch.float64) if weights is None else weights.double().reshape(-1)
    parts = rows.tensor_split(blocks or 1, dim=1)
    found = []
    for sign in (False, True):
        of_parts = []
        for part in parts:
            ones = torch.cat((part, torch.ones(part.shape[0], 1, dtype=torch.float64)), 1)
            ones = ones.abs() if sign else ones
            of_parts.append((ones * (w.abs() if sign else w).unsqueeze(1)).T @ ones)
        found.append(torch.stack(of_parts) if blocks is not None else of_parts[0])
    return found[0], found[1]


def truth_second_moment(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    x, weights = before["x"], before["weights"]
    want, size = moments_of(x, weights, before["blocks"])
    rows = x.shape[:-1].numel()
    lost = 0.0 if weights is None else float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
    accumulate = wide(x)
    return {"result": (want, allowed(want, size, rows, accumulate, accumulate, lost))}


def cov_matvec(draw: Draw) -> Case:
    d = draw.size()
    lead = draw.shape(draw.random.choice((0, 1, 1, 1, 2)), max(4_000 // max(d, 1), 1))
    vectors = draw.shape(draw.random.choice((0, 1, 1, 2)), max(2_000 // max(d, 1), 1))
    one = draw.dtype(*DTYPES)
    arguments = {
        "x": draw.tensor((*lead, d), one),
        "v": draw.tensor((*vectors, d + draw.random.randrange(2)), one if draw.chance(0.7) else draw.dtype(*DTYPES)),
        "ridge": repr(draw.number(0.0, 0.1, 1.0, 0)),
    }
    case = Case("cov_matvec", arguments, truth_cov_matvec, names={"x": ("v",)})
    return finish(draw, case, {"x": "tensor", "v": "tensor", "ridge": "ridge"})


def truth_cov_matvec(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    x, v, ridge = before["x"], before["v"], before["ridge"]
    d = x.shape[-1]
    rows, vectors = x.double().reshape(x.shape[:-1].numel(), d), v.double().reshape(v.shape[:-1].numel(), v.shape[-1])
    if vectors.shape[1] > d:
        rows = torch.cat((rows, torch.ones(rows.shape[0], 1, dtype=torch.float64)), 1)
    count = max(rows.shape[0], 1)
    ridges = torch.full((vectors.shape[1],), float(ridge), dtype=torch.float64)
    ridges[d:] = 0.0
    want = (vectors @ rows.T) @ rows / count + ridges * vectors
    middle = vectors.abs() @ rows.T.abs()
    size = middle @ rows.abs() / count + ridges * vectors.abs()
    limit = torch.finfo(wide(x, v)).max / 4
    fits = (
        middle.amax(1, keepdim=True) < limit if rows.shape[0] else torch.ones(len(vectors), 1, dtype=torch.bool)
    ) & (size * count < limit)
    size = torch.where(fits | size.isnan(), size, math.inf)
    lost = rows.abs().sum(0)
    bound = allowed(want, size, rows.shape[0] + d, wide(x, v), v.dtype, lost.nan_to_num(math.inf, math.inf))
    return {"result": (want.reshape(v.shape), bound.reshape(v.shape))}


def arrow_solve(draw: Draw) -> Case:
    d = draw.size()
    one_row = draw.chance(0.15)
    lead = () if one_row else draw.shape(draw.random.choice((0, 0, 1)), 8)
    rows = () if one_row else (draw.size(),)
    bias = draw.chance(0.6)
    dtype = draw.dtype(*DTYPES)
    mixed = draw.chance(0.3)
    arguments = {
        "v": draw.tensor((*lead, *rows, d + bias), dtype),
        "mu": draw.tensor((*lead, d), draw.dtype(*DTYPES) if mixed else dtype),
        "var": draw.tensor((*lead, d), draw.dtype(*DTYPES) if mixed else dtype, make="positive"),
        "bias": str(bias),
    }
    case = Case("arrow_solve", arguments, truth_arrow_solve)
    return finish(draw, case, {"v": "tensor", "mu": "tensor", "var": "tensor"})


def truth_arrow_solve(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    v, bias = before["v"], before["bias"]
    rows, mu, var = v.double(), before["mu"].double(), before["var"].double()
    accumulate = wide(v, before["mu"], before["var"])
    limits = torch.finfo(accumulate)
    if rows.dim() > 1:
        mu, var = mu.unsqueeze(-2), var.unsqueeze(-2)
    tiny = quantum(accumulate)
    if not bias:
        bottom = var + mu * mu
        want = rows / bottom
        size = torch.where(bottom < limits.max / 4, rows.abs() / bottom, math.inf)
        bound = allowed(want, size, 4, accumulate, v.dtype) + want.abs() * tiny / bottom
        return {"result": (want, bound.nan_to_num(math.inf, math.inf))}
    w, b = rows[..., :-1], rows[..., -1:]
    first = (w - mu * b) / var
    last = b - (mu * first).sum(-1, keepdim=True)
    top = w.abs() + (mu * b).abs()
    size = torch.where(top < limits.max / 4, top, math.inf) / var
    size_last = b.abs() + (mu.abs() * size).sum(-1, keepdim=True)
    want, sizes = torch.cat((first, last), -1), torch.cat((size, size_last), -1)
    lost = 1 / var.expand_as(w)
    lost = torch.cat((lost, 1 + (mu.abs() * (1 + lost)).sum(-1, keepdim=True)), -1)
    sizes = torch.where((size < limits.max / 4).all(-1, keepdim=True) | ~sizes.isfinite(), sizes, math.inf)
    bound = allowed(want, sizes, rows.shape[-1] + 4, accumulate, v.dtype, lost)
    return {"result": (want, bound.nan_to_num(math.inf, math.inf))}


GENERATORS = {
    "second_moment": second_moment,
    "cov_matvec": cov_matvec,
    "arrow_solve": arrow_solve,
}
