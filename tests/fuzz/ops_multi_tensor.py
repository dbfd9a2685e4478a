"""Cases of the ops on lists of tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from fuzz.bounds import allowed, quantum, wide
from fuzz.case import Case, Values
from fuzz.corrupt import corrupted
from fuzz.draw import DTYPES, Draw
from torch import Tensor


def _lists(draw: Draw, names: dict[str, tuple[str, ...]], written: set[str]) -> tuple[dict[str, str], int]:
    """The text of lists of tensors that agree in shape; ``names`` gives each list's dtypes. Mixed, or one for all."""
    count = draw.random.choice((0, 1, 1, 2, 3, 3, 4, 5, 8)) if not draw.chance(0.01) else 40
    mixed = draw.chance(0.5)
    one = {name: draw.dtype(*dtypes) for name, dtypes in names.items()}
    texts: dict[str, list[str]] = {name: [] for name in names}
    for _ in range(count):
        shape = draw.shape(entries=2_000)
        scale = draw.scale()
        layout = draw.seed()  # mostly the same arrangement for all tensors of a position
        together = draw.chance(0.6)
        for name, dtypes in names.items():
            dtype = draw.dtype(*dtypes) if mixed else one[name]
            if together:
                kept = draw.random.getstate()
                draw.random.seed(layout)
                arrangement = draw.arranged("{}", dtype, name in written)
                draw.random.setstate(kept)
                inner = draw.tensor(shape, dtype, scale=scale if draw.chance(0.7) else None, views=False)
                texts[name].append(arrangement.replace("{}", inner))
            else:
                texts[name].append(draw.tensor(shape, dtype, scale=scale, written=name in written))
    return {name: f"[{', '.join(parts)}]" for name, parts in texts.items()}, count


def _finish(
    draw: Draw, case: Case, kinds: dict[str, str], count: int, free: frozenset[tuple[str, str]] = frozenset()
) -> Case:
    """Refusals that are allowed, memory that is shared, a gradient that is required, or one wrong argument."""
    case.backend = draw.random.choice(("auto", "auto", "reference"))
    case.may_refuse = {why for why in draw.unusual if case.written or why == "wrapped"}
    if count == 0:
        free |= {(name, way) for name in kinds for way in ("meta", "None entry", "length", "None")}
    if draw.chance(0.2):
        return corrupted(draw, case, kinds, free) if not draw.unusual else case
    unusual = bool(draw.unusual)
    if case.written and count and not unusual and draw.chance(0.05):
        _alias(draw, case)
    elif case.written and count and not unusual and draw.chance(0.05):
        name = draw.random.choice(case.written)
        case.arguments[name] = f"[with_grad(t) for t in {case.arguments[name]}]"
        case.mode = draw.random.choice(("no_grad", "grad"))
        if case.mode == "grad":
            case.may_refuse.add("requires grad")
    elif draw.chance(0.1):
        case.mode = draw.random.choice(("grad", "inference", "autocast"))
        if case.mode == "inference" and "wrapped" in draw.unusual:  # PyTorch has no views of such tensors there
            case.mode = "grad"
        elif case.mode == "inference":
            case.may_refuse.discard("inference")
    elif draw.plain and draw.chance(0.1):
        case.fake = count > 0
    return case


def _alias(draw: Draw, case: Case) -> None:
    """Two tensors of the call share memory, and one of them is written."""
    target = draw.random.choice(case.written)
    other = draw.random.choice([name for name, text in case.arguments.items() if text.startswith("[")])
    if "out" in (target, other):  # its text needs the averages
        return
    case.arguments = {"base": case.arguments[target], **case.arguments, target: "base"}
    if other == target:
        case.arguments[target] = "[*base[:-1], base[0].detach()] if base[0].shape == base[-1].shape else base"
    else:
        flipped = "[t.mT if t.dim() > 1 and t.shape[-1] == t.shape[-2] else t.detach() for t in base]"
        case.arguments[other] = draw.random.choice(("base", "[t.detach() for t in base]", flipped))
    case.may_refuse.add("shares memory")


def all_finite(draw: Draw) -> Case:
    lists, count = _lists(draw, {"tensors": DTYPES}, set())
    case = Case("multi_tensor.all_finite", lists, truth_all_finite)
    free = {"length", "shape"} | ({"meta"} if count < 2 else set())
    return _finish(draw, case, {"tensors": "tensors"}, count, frozenset(("tensors", way) for way in free))


def truth_all_finite(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    want = torch.tensor(all(bool(t.double().isfinite().all()) for t in before["tensors"]))
    return {"result": (want, "bits")}


def _averages(before: Values) -> list[tuple[Tensor, Tensor]]:
    """The new averages in float64, and their magnitudes."""
    beta = before["beta"]
    found = []
    for a, v in zip(before["averages"], before["values"], strict=True):
        if before["ok"] is not None and not before["ok"]:
            found.append((a.double(), a.double().abs()))
        else:
            new = beta * a.double() + (1.0 - beta) * v.double()
            found.append((new, beta * a.double().abs() + (1.0 - beta) * v.double().abs()))
    return found


def truth_ema(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    if before["ok"] is not None and not before["ok"]:
        return {f"averages[{i}]": (a, "bits") for i, a in enumerate(before["averages"])}
    pairs = zip(before["averages"], before["values"], _averages(before), strict=True)
    return {
        f"averages[{i}]": (want, allowed(want, magnitude, 2, wide(a, v), a.dtype))
        for i, (a, v, (want, magnitude)) in enumerate(pairs)
    }


def truth_ema_combined(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    found = truth_ema(before, after)
    take, shares = before["take"], before["shares"].double()
    pairs = zip(before["averages"], before["values"], _averages(before), shares, strict=True)
    for i, (a, v, (new, magnitude), share) in enumerate(pairs):
        want = share * new + (take * v.double() if take != 0 else 0.0)
        size = share.abs() * magnitude + (abs(take) * v.double().abs() if take != 0 else 0.0)
        bound = allowed(want, size, 4, wide(a, v), a.dtype, float(share.abs()))
        # Whether the average is rounded to its dtype before it is combined is left open.
        bound = bound + share.abs() * (2 * torch.finfo(a.dtype).eps * new.abs() + quantum(a.dtype))
        bound = torch.where(magnitude < torch.finfo(a.dtype).max / 4, bound, math.inf)
        found[f"result[{i}]"] = (want, bound)
        if before.get("out") is not None:
            found[f"out[{i}]"] = found[f"result[{i}]"]
    return found


def _ema(draw: Draw, op: str, truth: Any) -> tuple[Case, dict[str, str], int]:
    lists, count = _lists(draw, {"averages": DTYPES, "values": DTYPES}, {"averages"})
    arguments = {**lists, "beta": repr(draw.number(0.0, 1.0, 0.9, 0.999, 0.5)), "ok": draw.flag()}
    case = Case(f"multi_tensor.{op}", arguments, truth, ("averages",))
    return case, {"averages": "tensors", "values": "tensors", "beta": "share", "ok": "flag"}, count


def ema_combined(draw: Draw) -> Case:
    case, kinds, count = _ema(draw, "ema_combined_", truth_ema_combined)
    dtype = draw.dtype(*DTYPES)
    case.arguments |= {
        "shares": draw.tensor((count,), dtype, scale=1.0, make="positive"),
        "take": repr(draw.number(0.0, 0.1, 1.0, -1.0)),
        "out": "None",
    }
    if draw.chance(0.4):
        case.arguments["out"] = "[torch.full(t.shape, 7.0, dtype=t.dtype) for t in averages]"
        case.written = ("averages", "out")
        del kinds["averages"]  # the text of out needs it
    kinds |= {"shares": "tensor", "take": "finite"}
    return _finish(draw, case, kinds, count)


def dot(draw: Draw) -> Case:
    lists, count = _lists(draw, {"xs": DTYPES, "ys": DTYPES}, set())
    layers = "None"
    if count and draw.chance(0.5):
        layers = str([draw.random.randrange(count) for _ in range(count)])
    case = Case("multi_tensor.dot", {**lists, "layers": layers}, truth_dot)
    kinds = {"xs": "tensors", "ys": "tensors", "layers": "layers"}
    return _finish(draw, case, kinds, count)


def truth_dot(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    xs, ys, layers = before["xs"], before["ys"], before["layers"]
    if not xs:
        return {"result": (torch.empty(0), torch.empty(0))}
    layers = list(range(len(xs))) if layers is None else layers
    want, size = torch.zeros(2, max(layers) + 1, dtype=torch.float64)
    terms = 0
    for layer, x, y in zip(layers, xs, ys, strict=True):
        product = x.double() * y.double()
        want[layer] += product.sum()
        size[layer] += product.abs().sum()
        terms += product.numel()
    return {"result": (want, allowed(want, size, terms + len(xs), torch.float64, torch.float64))}


def squared_row_norms(draw: Draw) -> Case:
    lists, count = _lists(draw, {"tensors": DTYPES}, set())
    rows = draw.pick("t.shape[0] if t.dim() else 1", "t.shape[0] if t.dim() else 1", "t.numel()", "1")
    # The same tensors once more, of which the rows are counted when one of the others is spoilt.
    arguments = {"base": lists["tensors"], **lists, "rows": f"[{rows} for t in base]"}
    case = Case("multi_tensor.squared_row_norms", arguments, truth_squared_row_norms)
    free = {"shape"} | ({"meta"} if count < 2 else set())
    kinds = {"tensors": "tensors", "rows": "rows"}
    return _finish(draw, case, kinds, count, frozenset(("tensors", way) for way in free))


def truth_squared_row_norms(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    if not before["tensors"]:
        return {"result": (torch.empty(0), torch.empty(0))}
    norms, terms = [], 0
    for x, count in zip(before["tensors"], before["rows"], strict=True):
        columns = x.numel() // count if count else 0
        entries = x.double().flatten()
        norms += [entries[i * columns : (i + 1) * columns].square().sum() for i in range(count)]
        terms = max(terms, columns)
    want = torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64)
    return {"result": (want, allowed(want, want, terms, torch.float64, torch.float64))}


def _step(draw: Draw, case: Case, kinds: dict[str, str], count: int) -> Case:
    scales = draw.tensor((count,), draw.dtype(*DTYPES), scale=1.0)
    if draw.chance(0.3):
        scales = f"spiked({scales}, {draw.random.randrange(10)}, 0.0)"
    case.arguments["scales"] = scales
    for name, numbers in (("lr", (0.0, 0.1, 1.0, 1e-3)), ("weight_decay", (0.0, 0.01, 0.5))):
        rate = repr(draw.number(*numbers))
        if draw.chance(0.3):
            rate = f"torch.tensor({rate}, dtype={draw.dtype('torch.float32', 'torch.float64', 'torch.bfloat16')})"
        case.arguments[name] = rate
    case.arguments["ok"] = draw.flag()
    kinds |= {"scales": "tensor", "lr": "rate", "weight_decay": "rate", "ok": "flag"}
    return _finish(draw, case, kinds, count)


def apply(draw: Draw) -> Case:
    lists, count = _lists(draw, {"params": DTYPES, "directions": DTYPES}, {"params"})
    case = Case("multi_tensor.apply_", lists, truth_apply, ("params",))
    return _step(draw, case, {"params": "tensors", "directions": "tensors"}, count)


def apply_master(draw: Draw) -> Case:
    names = {"masters": ("torch.float32",), "params": DTYPES, "directions": DTYPES}
    lists, count = _lists(draw, names, {"masters", "params"})
    case = Case("multi_tensor.apply_master_", lists, truth_apply_master, ("masters", "params"))
    return _step(draw, case, dict.fromkeys(names, "tensors"), count)


def steps_of(before: Values, name: str) -> dict[str, tuple[Any, Any]]:
    """``p - lr (scale direction + weight_decay p)`` of the list of this name."""
    lr, decay = float(before["lr"]), float(before["weight_decay"])
    found: dict[str, tuple[Any, Any]] = {}
    for i, (p, d, scale) in enumerate(zip(before[name], before["directions"], before["scales"].double(), strict=True)):
        if before["ok"] is not None and not before["ok"]:
            found[f"{name}[{i}]"] = (p, "bits")
            continue
        step = torch.zeros_like(p, dtype=torch.float64) if lr * scale == 0 else scale * d.double()
        want = p.double() - lr * (step + decay * p.double())
        size = p.double().abs() + abs(lr) * (step.abs() + decay * p.double().abs())
        size = torch.where(step.abs() < 1e37, size, math.inf) if wide(p, d) == torch.float32 else size
        found[f"{name}[{i}]"] = (want, allowed(want, size, 6, wide(p, d), p.dtype, abs(lr)))
    return found


def truth_apply(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    return steps_of(before, "params")


def truth_apply_master(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    found = steps_of(before, "masters")
    moves = before["ok"] is None or bool(before["ok"])
    for i, (p, master) in enumerate(zip(before["params"], after["masters"], strict=True)):
        found[f"params[{i}]"] = (master.to(p.dtype) if moves else p, "bits")
    return found


GENERATORS = {
    "multi_tensor.all_finite": all_finite,
    "multi_tensor.ema_combined_": ema_combined,
    "multi_tensor.dot": dot,
    "multi_tensor.squared_row_norms": squared_row_norms,
    "multi_tensor.apply_": apply,
    "multi_tensor.apply_master_": apply_master,
}
