"""Cases of the functions that choose and report: they keep what was set, and refuse what does not exist."""

from __future__ import annotations

from typing import Any

from fuzz.case import Case, Values
from fuzz.draw import Draw

WRONG = ('"cuda"', "None", "3", '""', "[1]", "object()", '"AUTO"')
NAMES = {
    "set_backend": ("auto", "reference", "native"),
    "set_input_precision": ("auto", "tf32", "tf32x3", "ieee"),
}


def _setter(op: str, draw: Draw) -> Case:
    name = repr(draw.random.choice(NAMES[op]))
    case = Case(op, {"name": name}, truth_setting)
    if op == "set_backend":
        case.call = "lk.set_backend(name)\nresult = lk.get_backend() == name"
    else:
        case.call = "lk.set_input_precision(name)\nlk.set_input_precision('auto')\nresult = True"
    if draw.chance(0.5):
        case.arguments["name"] = case.fault = draw.random.choice(WRONG)
        case.bad = "name"
    return case


def set_backend(draw: Draw) -> Case:
    return _setter("set_backend", draw)


def set_input_precision(draw: Draw) -> Case:
    return _setter("set_input_precision", draw)


def set_moment_stream(draw: Draw) -> Case:
    case = Case("set_moment_stream", {"stream": draw.random.choice(("'same'", "'side'"))}, truth_setting)
    case.call = "lk.set_moment_stream(stream)\nlk.set_moment_stream('same')\nresult = True"
    if draw.chance(0.5):
        case.arguments["stream"] = case.fault = draw.random.choice(WRONG)
        case.bad = "stream"
    return case


def get_backend(draw: Draw) -> Case:
    case = Case("get_backend", {}, truth_setting, backend=draw.random.choice(("auto", "reference", "native")))
    case.call = f"result = lk.get_backend() == {case.backend!r}"
    return case


def report(draw: Draw) -> Case:
    case = Case("report", {}, truth_setting)
    case.call = "result = all(name in str(lk.report()) for name in ('second_moment', 'pcg', 'multi_tensor_dot'))"
    return case


def truth_setting(before: Values, after: Values) -> dict[str, tuple[Any, Any]]:
    return {"result": (True, None)}


GENERATORS = {
    "set_backend": set_backend,
    "set_input_precision": set_input_precision,
    "set_moment_stream": set_moment_stream,
    "get_backend": get_backend,
    "report": report,
}
