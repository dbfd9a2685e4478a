"""Cases of the solvers: conjugate gradients, inverses, Newton-Schulz iterations and two-sided directions.

No short bound holds for an iteration, so equations are well conditioned here, and the error of the same recurrence in plain
PyTorch counts too: at most twice that, plus a floor relative to the largest entry.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from fuzz.bounds import normwise, quantum, wide
from fuzz.case import Case, Values
from fuzz.draw import DTYPES, Draw
from fuzz.ops_products import finish
from torch import Tensor

STOP = 1e-5
COEFFICIENTS = ("(3.4445, -4.775, 2.0315)", "(1.5, -0.5, 0.0)", "[2.0, -1.5, 0.5]", "(1, 0, 0)")


def _equation(draw: Draw, dtype: str, lead: tuple[int, ...]) -> dict[str, str]:
    """The text of ``s, g, h0, arrow`` of one layer."""
    d, rows = draw.size(1, 2, 3, 7, 8, 16, 31), draw.size(1, 2, 3, 8, 17)
    columns = d + draw.random.randrange(2)
    scale = 1.0 if draw.plain or draw.chance(0.7) else draw.random.choice((1e-20, 1e-8, 1e8, 1e20))
    if dtype == "torch.float16":
        scale = 1.0
    s_lead = lead if draw.chance(0.6) else tuple(1 if draw.chance(0.5) else n for n in lead)
    arrow = "None"
    if draw.chance(0.5):
        mu, var = (
            draw.tensor((*lead, d), dtype, scale=0.2, spikes=False),
            f"positive({draw.seed()}, {(*lead, d)}, {dtype})",
        )
        arrow = f"({mu}, {var})"
    return {
        "s": draw.arranged(f"moment({draw.seed()}, {s_lead}, {d}, {dtype})", dtype),
        "g": draw.tensor((*lead, rows, columns), dtype, scale=scale, spikes=False),
        "h0": draw.tensor((*lead, rows, columns), dtype, scale=scale, spikes=False) if draw.chance(0.4) else "None",
        "arrow": arrow,
    }


def _no_expanded(text: str) -> str:
    return text.replace("expanded(", "(").replace("swapped(", "(")


def pcg(draw: Draw) -> Case:
    dtype = draw.dtype(*DTYPES)
    lead = draw.shape(draw.random.choice((0, 0, 1, 2)), 4)
    layer_dims = 3 if lead and draw.chance(0.3) else 2
    equation = _equation(draw, dtype, lead)
    s = _no_expanded(equation.pop("s"))
    ridge = draw.number(0.0, 0.1, 1.0)
    arguments = {"base": s, "matvec_or_s": "base", **equation}
    kinds = {"g": "tensor", "matvec_or_s": "tensor", "iterations": "count", "ridge": "ridge", "scope": "scope"}
    if draw.chance(0.25):
        inner = "torch.float64" if dtype == "torch.float64" else "torch.float32"
        arguments = {"base": s, "base_metric": f"metric_of(base.to({inner}), ({equation['g']}).shape[-1], {ridge})"}
        arguments |= {"matvec_or_s": f"lambda v: v.to({inner}) @ base_metric", **equation}
        ridge = 0.0
        del kinds["matvec_or_s"]
    arguments |= {
        "iterations": str(draw.random.choice((0, 1, 2, 2, 3))),
        "ridge": repr(ridge),
        "scope": repr(draw.random.choice(("layer", "neuron"))),
        "layer_dims": str(layer_dims),
    }
    if arguments["h0"] != "None":
        kinds["h0"] = "tensor?"
    if arguments["arrow"] != "None":
        kinds["arrow"] = "arrow"
    free = {("g", "shape"), ("g", "meta")} if "base_metric" in arguments else set()  # the user's own product refuses it
    case = finish(draw, Case("pcg", arguments, truth_pcg, names={"matvec_or_s": ("S",)}), kinds, free)
    if "base_metric" in arguments:  # it multiplies by a real tensor, and in the dtype of autocast
        case.fake = False
        case.mode = "no_grad" if case.mode == "autocast" else case.mode
    return case


def metric(s: Tensor, size: int, ridge: float) -> Tensor:
    """``S / N + ridge`` on the weights' diagonal, for so many columns; zero rows make zeros."""
    count = s[..., -1:, -1:]
    a = s[..., :size, :size] / torch.where(count == 0, 1, count)
    weights = torch.ones(size, dtype=a.dtype)
    weights[s.shape[-1] - 1 :] = 0.0
    return a + ridge * torch.diag(weights)


def precondition(r: Tensor, mu: Tensor | None, var: Tensor | None) -> Tensor:
    """The arrow solve of every row, with a bias where there is one more column than means."""
    if mu is None or var is None:
        return r
    mu, var = mu.unsqueeze(-2), var.unsqueeze(-2)
    if r.shape[-1] == mu.shape[-1]:
        return r / (var + mu * mu)
    w = (r[..., :-1] - mu * r[..., -1:]) / var
    return torch.cat((w, r[..., -1:] - (mu * w).sum(-1, keepdim=True)), -1)


def recurrence(
    a: Tensor, g: Tensor, h0: Tensor | None, arrow: Any, iterations: int, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Preconditioned conjugate gradients by the book; returns ``h`` and the norms of the residuals."""
    mu, var = (None, None) if arrow is None else arrow

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(dims, keepdim=True)

    h = torch.zeros_like(g) if h0 is None else h0
    r = g - h @ a
    z = p = precondition(r, mu, var)
    norms = [dot(r, r).sqrt()]
    for _ in range(iterations):
        ap = p @ a
        curvature, rz = dot(p, ap), dot(r, z)
        active = (norms[-1] > STOP * dot(g, g).sqrt()) & (curvature > 0)
        step = torch.where(active, rz / torch.where(active, curvature, 1), 0)
        h, r = h + step * p, r - step * ap
        z = precondition(r, mu, var)
        p = z + torch.where(active, dot(r, z) / torch.where(active, rz, 1), 0) * p
        norms.append(dot(r, r).sqrt())
    return h, torch.stack(norms)


def solved(
    a: Tensor, g: Tensor, h0: Tensor | None, arrow: Any, iterations: int, dims: tuple[int, ...], inner: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """``h`` and the norms with what they may err: by the recurrence in float64, and in the dtype of the arithmetic."""
    unit = float(g.double().abs().max()) if g.numel() else 1.0
    unit = unit if unit > 0 else 1.0

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        start = None if h0 is None else (h0.double() / unit).to(dtype)
        of_arrow = None if arrow is None else tuple(part.to(dtype) for part in arrow)
        return recurrence(a.to(dtype), (g.double() / unit).to(dtype), start, of_arrow, iterations, dims)

    h, norms = run(torch.float64)
    plain_h, plain_norms = run(inner)
    threshold = STOP * g.double().square().sum(dims, keepdim=True).sqrt() / unit
    near = bool(((norms < 30 * threshold) & (norms > 0)).any())  # where a unit stops may differ
    floor = 5e-3 if near else 1e-9 if inner == torch.float64 else 1e-3
    norms = norms.reshape(iterations + 1, *g.shape[: g.dim() - len(dims)])
    worse = 2 * float((plain_h.double() - h).abs().max()) if h.numel() else 0.0
    bound_h = normwise(h, floor, g.dtype, dims) + worse + quantum(g.dtype) / unit
    first = norms[:1].abs() if norms.numel() else norms
    worse = 2 * float((plain_norms.double().reshape(norms.shape) - norms).abs().max()) if norms.numel() else 0.0
    bound_norms = (floor * (first + threshold.reshape(first.shape) / STOP) + worse).expand_as(norms)
    too_large = unit * (float(h.abs().max()) if h.numel() else 0.0) > torch.finfo(g.dtype).max / 8
    scale = math.inf if too_large else unit
    out = torch.finfo(torch.float32 if inner == torch.float32 else torch.float64)
    return [(h * unit, bound_h * scale), (norms * unit, (bound_norms * unit + out.tiny) * (scale / unit))]


def truth_pcg(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    g, h0, arrow = before["g"], before["h0"], before["arrow"]
    inner = wide(g, before["base"], h0, *(arrow or ()))
    if callable(before["matvec_or_s"]):
        a = before["base_metric"].double()
    else:
        a = metric(before["base"].double(), g.shape[-1], before["ridge"])
    dims = (-1,) if before["scope"] == "neuron" else tuple(range(-before["layer_dims"], 0))
    found = solved(a, g, h0, arrow, before["iterations"], dims, inner)
    return {f"result[{i}]": pair for i, pair in enumerate(found)}


def pcg_layers(draw: Draw) -> Case:
    count = draw.random.choice((0, 1, 2, 3))
    one = draw.dtype(*DTYPES)
    equations = []
    for _ in range(count):
        dtype = one if draw.chance(0.7) else draw.dtype(*DTYPES)
        equations.append(_equation(draw, dtype, draw.shape(draw.random.choice((0, 0, 1)), 3)))
    lists = {
        name: "[" + ", ".join(equation[key] for equation in equations) + "]"
        for name, key in (("moments", "s"), ("gradients", "g"), ("starts", "h0"), ("arrows", "arrow"))
    }
    lists["moments"] = _no_expanded(lists["moments"])
    arguments = {
        **lists,
        "iterations": str(draw.random.choice((0, 1, 2, 3))),
        "ridge": repr(draw.number(0.0, 0.1, 1.0)),
    }
    singular = {name: (name[:-1],) for name in lists}
    case = Case("pcg_layers", arguments, truth_pcg_layers, names=singular)
    kinds = {"moments": "tensors", "gradients": "tensors", "iterations": "count", "ridge": "ridge"}
    free = {(name, "length") for name in lists} if not count else set()
    return finish(draw, case, kinds, free)


def truth_pcg_layers(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    lists = (before[name] for name in ("moments", "gradients", "starts", "arrows"))
    for i, (s, g, h0, arrow) in enumerate(zip(*lists, strict=True)):
        a = metric(s.double(), g.shape[-1], before["ridge"])
        inner = wide(g, s, h0, *(arrow or ()))
        for j, pair in enumerate(solved(a, g, h0, arrow, before["iterations"], (-1,), inner)):
            found[f"result[{j}][{i}]"] = pair
    return found


def spd_inverse(draw: Draw) -> Case:
    n = draw.random.choice((0, 1, 2, 3, 7, 8, 16, 17, 33)) if draw.chance(0.95) else draw.random.choice((63, 127, 129))
    lead = draw.shape(draw.random.choice((0, 1, 1, 2)), 6 if n < 60 else 1)
    dtype = draw.random.choice(("torch.float32", "torch.float64"))
    scale = 1.0 if draw.plain or draw.chance(0.7) else draw.random.choice((1e-20, 1e-6, 1e6, 1e20))
    text = f"spd({draw.seed()}, {lead}, {n}, {dtype}, 0.5, {scale!r})"
    if n and draw.chance(0.15):
        text = f"spiked({text}, {draw.random.randrange(n) * (n + 1)}, {draw.pick('-1e30', '0.0')})"
    case = Case("spd_inverse", {"matrices": _no_expanded(draw.arranged(text, dtype))}, truth_spd_inverse)
    return finish(draw, case, {"matrices": "tensor"}, {("matrices", "meta")})


def truth_spd_inverse(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    matrices = before["matrices"].double()
    _, info = torch.linalg.cholesky_ex(matrices)
    failed = info != 0
    n = matrices.shape[-1]
    fine = torch.where(failed[..., None, None], torch.eye(n, dtype=torch.float64), matrices)
    want = torch.linalg.inv(fine) if n else fine
    eps = torch.finfo(before["matrices"].dtype).eps
    bound = normwise(want, 64 * 10 * (n + 4) * eps, before["matrices"].dtype)
    bound = torch.where(failed[..., None, None], math.inf, bound)
    return {"result[0]": (want, bound), "result[1]": (failed, "bits")}


def newton_schulz(draw: Draw) -> Case:
    dtype = draw.dtype(*DTYPES)
    k, l = draw.size(), draw.size()
    lead = draw.shape(draw.random.choice((0, 0, 1, 2)), 3)
    scale = draw.random.choice((1.0, 1.0, 0.3)) / max(k**0.5 + l**0.5, 1.0)
    arguments = {
        "x": draw.tensor((*lead, k, l), dtype, scale=scale, spikes=False),
        "coefficients": draw.random.choice(COEFFICIENTS),
        "steps": str(draw.random.choice((0, 1, 2, 5))),
    }
    case = Case("newton_schulz", arguments, truth_newton_schulz)
    kinds = {"x": "tensor", "coefficients": "coefficients", "steps": "count"}
    return finish(draw, case, kinds, {("x", "meta"), ("x", "shape")})


def polynomial(x: Tensor, coefficients: Any, steps: int) -> Tensor:
    """``steps`` times ``X <- a X + (b A + c A^2) X``."""
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def growth(coefficients: Any, steps: int) -> float:
    """By how much the iteration can magnify an error: the steepest slope of its polynomial on [0, 1.3], ``steps`` times."""
    a, b, c = (abs(float(value)) for value in coefficients)
    return float((a + 3 * b * 1.3**2 + 5 * c * 1.3**4) ** max(steps - 1, 0))


def truth_newton_schulz(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    x, coefficients, steps = before["x"], before["coefficients"], before["steps"]
    want = polynomial(x.double(), coefficients, steps)
    plain = polynomial(x, coefficients, steps).double()
    worse = 4 * float((plain - want).abs().nan_to_num(math.inf).max()) if want.numel() else 0.0
    if steps == 0:
        return {"result": (x, "bits")}
    floor = 8 * (x.shape[-1] + x.shape[-2]) ** 0.5 * torch.finfo(x.dtype).eps * steps
    bound = normwise(want, floor, x.dtype) + worse
    if want.numel() and not want.abs().max() < 1e3:  # it diverges, and every error grows with it
        bound = torch.full_like(want, math.inf)
    return {"result": (want, bound)}


def newton_schulz_root(draw: Draw) -> Case:
    dtype = draw.dtype(*DTYPES)
    n = draw.size()
    lead = draw.shape(draw.random.choice((0, 0, 1)), 3)
    power = draw.arranged(f"spd({draw.seed()}, {lead}, {n}, {dtype}, 0.1, 0.3)", dtype)
    arguments = {
        "power": _no_expanded(power),
        "coefficients": draw.random.choice(COEFFICIENTS),
        "steps": str(draw.random.choice((0, 1, 2, 3))),
    }
    case = Case("newton_schulz_root", arguments, truth_newton_schulz_root)
    kinds = {"power": "tensor", "coefficients": "coefficients", "steps": "count"}
    return finish(draw, case, kinds, {("power", "meta")})


def root(power: Tensor, coefficients: Any, steps: int) -> Tensor:
    """The product of the factors ``T = a + b A + c A^2``, ``A`` becoming ``T A T``."""
    a, b, c = coefficients
    eye = torch.eye(power.shape[-1], dtype=power.dtype)
    product = eye.expand_as(power)
    for _ in range(steps):
        factor = a * eye + b * power + c * power @ power
        product = factor @ product
        power = factor @ power @ factor
    return product


def truth_newton_schulz_root(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    power, coefficients, steps = before["power"], before["coefficients"], before["steps"]
    want = root(power.double(), coefficients, steps)
    plain = root(power, coefficients, steps).double()
    worse = 4 * float((plain - want).abs().nan_to_num(math.inf).max()) if want.numel() else 0.0
    floor = 16 * power.shape[-1] ** 0.5 * torch.finfo(power.dtype).eps * max(steps, 1)
    return {"result": (want, normwise(want, floor, power.dtype) + worse)}


def two_sided(draw: Draw) -> Case:
    count = draw.random.choice((0, 1, 1, 2, 3))
    dtype = draw.dtype("torch.float32", "torch.float32", "torch.float64", "torch.bfloat16")
    lists: dict[str, list[str]] = {name: [] for name in ("weights", "biases", "inverses", "means", "roots")}
    squares: list[str] = []
    for _ in range(count):
        size, blocks = draw.random.choice((1, 2, 3, 7, 8, 16)), draw.random.choice((1, 1, 2, 3))
        side, cuts = draw.random.choice((1, 2, 3, 8, 9)), draw.random.choice((1, 1, 2))
        d, m = size * blocks, side * cuts
        lead = draw.shape(draw.random.choice((0, 0, 1)), 3)
        scale = 1.0 if draw.plain or draw.chance(0.6) else draw.random.choice((1e-38, 1e-25, 1e-8, 1e8, 1e25))
        has_bias = draw.chance(0.6)
        weight = draw.tensor((*lead, m, d), dtype, scale=scale, spikes=False, written=True)
        lists["weights"].append(weight)
        bias = draw.tensor((*lead, m, 1), dtype, scale=scale, spikes=False, written=True)
        lists["biases"].append(bias if has_bias else "None")
        inverse = f"spd({draw.seed()}, {(*lead, blocks)}, {size}, {dtype}, 0.5)"
        lists["inverses"].append(draw.arranged(inverse, dtype).replace("expanded(", "("))
        lists["means"].append(draw.tensor((*lead, d), dtype, scale=0.3, spikes=False) if has_bias else "None")
        of_roots = 1.0 if draw.chance(0.7) else draw.random.choice((1e-15, 1e15))
        lists["roots"].append(f"spd({draw.seed()}, {(*lead, cuts)}, {side}, {dtype}, 0.5, {of_roots!r})")
        of_squares = d * scale**2 * draw.random.choice((0.01, 0.5, 1.0, 4.0, 400.0))
        square = f"positive({draw.seed()}, {(*lead, m)}, torch.float64, {of_squares!r})"
        if not draw.plain and draw.chance(0.1):
            square = f"spiked({square}, {draw.random.randrange(100)}, 0.0)"
        squares.append(draw.arranged(square, "torch.float64"))
    arguments = {name: f"[{', '.join(parts)}]" for name, parts in lists.items()}
    arguments["squares"] = f"[{', '.join(squares)}]" if draw.chance(0.6) else "None"
    counted = f"positive({draw.seed()}, ({count},), torch.float64, 1.0)"
    arguments["bias_weights"] = draw.arranged(counted, "torch.float64") if count and draw.chance(0.5) else "None"
    singular = {"weights": ("weight",), "biases": ("bias",), "inverses": ("inverse",), "means": ("mean",)}
    singular["roots"] = ("root",)
    kinds = {**dict.fromkeys(lists, "tensors"), "squares": "tensors?", "bias_weights": "tensor?"}
    case = Case("two_sided_directions_", arguments, truth_two_sided, ("weights", "biases"), names=singular)
    free = {("squares", "None"), ("bias_weights", "None")} | (
        {(name, "length") for name in lists} if not count else set()
    )
    return finish(draw, case, kinds, free)


def block_diagonal(blocks: Tensor) -> Tensor:
    """The whole matrices of ``[..., count, n, n]`` blocks."""
    count, n = blocks.shape[-3], blocks.shape[-1]
    whole = blocks.new_zeros(*blocks.shape[:-3], count * n, count * n)
    for i in range(count):
        whole[..., i * n : (i + 1) * n, i * n : (i + 1) * n] = blocks[..., i, :, :]
    return whole


def agreement(weight: Tensor, bias: Tensor | None, squares: Tensor | None, counted: float) -> Tensor:
    """What every row is multiplied by, ``[..., m, 1]``."""
    if squares is None:
        return torch.ones(*weight.shape[:-1], 1, dtype=torch.float64)
    square = weight.double().square().sum(-1)
    if bias is not None:
        square = square + counted * bias.double().squeeze(-1).square()
    ratio = torch.where(squares > 0, square / squares.clamp_min(5e-324), 0.0)
    return ratio.sqrt().clamp_max(1.0).unsqueeze(-1)


def truth_two_sided(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    sums, errors = [torch.zeros(0, 4, dtype=torch.float64)], [torch.zeros(0, 4, dtype=torch.float64)]
    squares = before["squares"] or [None] * len(before["weights"])
    lists = (before[name] for name in ("weights", "biases", "inverses", "means", "roots"))
    for i, (weight, bias, inverse, mean, roots, square) in enumerate(zip(*lists, squares, strict=True)):
        p, c = block_diagonal(roots.double()), block_diagonal(inverse.double())
        largest = max([float(t.double().abs().max()) for t in (weight, bias) if t is not None and t.numel()] + [0.0])
        w = weight.double() / (largest or 1.0)
        b = torch.zeros(*w.shape[:-1], 1, dtype=torch.float64) if bias is None else bias.double() / (largest or 1.0)
        mu = torch.zeros(w.shape[:-2] + w.shape[-1:], dtype=torch.float64) if mean is None else mean.double()
        mixed, offset = p @ (w - b * mu.unsqueeze(-2)), p @ b
        h = mixed @ c
        last = offset - (h * mu.unsqueeze(-2)).sum(-1, keepdim=True)
        size = (h * mixed).sum(-1, keepdim=True) + offset**2
        scale = torch.where(size > 0, size.rsqrt(), 0.0)
        h, last = h * scale, last * scale
        relative = 64 * (w.shape[-1] ** 0.5 + w.shape[-2] ** 0.5 + 4) * torch.finfo(weight.dtype).eps
        bound = normwise(h, relative, weight.dtype, (-1,)) + (relative if h.numel() else 0.0)
        of_last = relative * (1 + last.abs() + (h.abs() * mu.abs().unsqueeze(-2)).sum(-1, keepdim=True))
        free, of_free = h.square().sum((-2, -1)), ((2 * h.abs() + bound) * bound).sum((-2, -1))
        counted = 1.0 if before["bias_weights"] is None else float(before["bias_weights"][i])
        factor = agreement(weight, bias, square, counted)
        h, last, bound, of_last = (x * factor for x in (h, last, bound, of_last))
        found[f"weights[{i}]"] = (h, bound + quantum(weight.dtype))
        if bias is not None:
            found[f"biases[{i}]"] = (last, of_last + quantum(weight.dtype))
        product = (h * w).sum((-2, -1)) + (last * b).sum((-2, -1))
        error = (bound * w.abs()).sum((-2, -1)) + (of_last * b.abs()).sum((-2, -1))
        error = error + relative * ((h * w).abs().sum((-2, -1)) + (last * b).abs().sum((-2, -1)))
        norm, of_norm = h.square().sum((-2, -1)), ((2 * h.abs() + bound) * bound).sum((-2, -1))
        gradient = (w.square().sum((-2, -1)) + counted * b.square().sum((-2, -1))) * largest**2
        of_gradient = 4 * (w.shape[-1] + 1) * w.shape[-2] * torch.finfo(torch.float64).eps * gradient
        of_row = (product * largest, norm, free, gradient)
        sums.append(torch.stack(of_row, -1).reshape(-1, 4))
        of_errors = (error * largest + 4e-38, of_norm, of_free, of_gradient)
        errors.append(torch.stack(of_errors, -1).reshape(-1, 4))
    found["result"] = (torch.cat(sums), torch.cat(errors))
    if not before["weights"]:
        found["result"] = (torch.empty(0, 4), torch.empty(0, 4))
    return found


GENERATORS = {
    "pcg": pcg,
    "pcg_layers": pcg_layers,
    "spd_inverse": spd_inverse,
    "newton_schulz": newton_schulz,
    "newton_schulz_root": newton_schulz_root,
    "two_sided_directions_": two_sided,
}
