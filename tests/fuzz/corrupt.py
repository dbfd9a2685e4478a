"""Exactly one wrong argument: what a careless caller passes, by the kind of the argument."""

from __future__ import annotations

import re
from dataclasses import replace

from fuzz.case import Case
from fuzz.draw import Draw

NOT_TENSORS = ('"text"', "3.5", "[1.0, 2.0]", "object()")
OF_TENSOR = {
    "dtype": ("({}).to(torch.int64)", "({}).to(torch.bool)", "({}).to(torch.complex64)"),
    "layout": ("({}).detach().as_subclass(torch.Tensor).clone().to_sparse()",),
    "meta": ('({}).to("meta")',),
    "shape": ("wrong_shape({})",),
}
NOT_A_NUMBER = ('"text"', "None", "[0.5]", "torch.ones(3)", "1j", "True")
NOT_FINITE = ('float("nan")', 'float("inf")', '-float("inf")', "10**400")
SCALARS = {
    "share": (*NOT_A_NUMBER, *NOT_FINITE, "-0.5", "1.5"),
    "finite": (*NOT_A_NUMBER, *NOT_FINITE),
    "ridge": (*NOT_A_NUMBER, *NOT_FINITE, "-0.1", "-1"),
    "rate": ('"text"', "None", "[0.5]", "1j", *NOT_FINITE, "torch.ones(3)", "torch.tensor(1)"),
    "count": ('"text"', "None", "[2]", "-1", "2.0", 'float("nan")', "True", "torch.ones(3)"),
    "at least 1": ('"text"', "None", "-1", "0", "2.0", 'float("nan")', "True", "torch.ones(3)"),
    "flag": ('"text"', "1", "torch.tensor([True, True])", "torch.tensor(1.0)", "[True]"),
    "dtype": ('"text"', "torch.int64", "torch.complex64", "3"),
    "scope": ('"text"', "None", "3", '"Layer"', "[1]"),
    "pair": ('"text"', "None", "2.5", "-1", "(1, 2, 3)", "(1.5, 2)", "(2, -2)", "[None, 1]", "2**40", 'float("nan")'),
    "layers": ('"text"', "3", "[-1]", "[10**6]", "[0.5]", "torch.zeros(2)"),
    "rows": ('"text"', "3", "None", "[-1]", "[0.5]", "[True]", "torch.ones(2)"),
    "sample": ('"text"', "3", "(torch.tensor(0.5),)", "(0.5, 2)", "(torch.tensor(0.5), 0)", "(torch.ones(2), 2)",
               "(torch.tensor(0.5), 1.5)", "(torch.tensor(0.5), True)"),
    "coefficients": ('"text"', "3", "None", "(1.0, 2.0)", '(1.0, float("nan"), 0.0)', '("a", "b", "c")'),
    "arrow": ('"text"', "3", "(torch.ones(3),)", "(None, None)", "[torch.ones(2), torch.ones(2)]"),
}  # fmt: skip


def corrupted(draw: Draw, case: Case, kinds: dict[str, str], free: frozenset[tuple[str, str]] = frozenset()) -> Case:
    """The case with one argument replaced by a wrong one.

    Args:
        draw: the case's random numbers.
        case: a valid case.
        kinds: what every argument is: ``"tensor"``, ``"tensor?"`` (or None), ``"tensors"``, ``"tensors?"`` or a key of
            ``SCALARS``.
        free: pairs of an argument and a way to spoil it that the op allows.
    """
    name = draw.random.choice([name for name in kinds if name in case.arguments])
    kind, text = kinds[name], case.arguments[name]
    if kind in SCALARS:
        wrong = [value for value in SCALARS[kind] if (name, value) not in free]
        fault = draw.random.choice(wrong)
    elif kind.startswith("tensors"):
        fault = _in_list(draw, name, text, free)
    else:
        fault = _of_tensor(draw, name, text, free, none=kind == "tensor")
    return replace(case, arguments={**case.arguments, name: fault}, bad=name, fault=fault, may_refuse=set())


def _of_tensor(draw: Draw, name: str, text: str, free: frozenset[tuple[str, str]], none: bool) -> str:
    ways = [way for way in OF_TENSOR if (name, way) not in free]
    if text == "None":
        ways = []
    way = draw.random.choice([*ways, "type", *(["None"] if none else [])])
    if way == "None":
        return "None"
    if way == "type":
        return draw.random.choice([value for value in NOT_TENSORS if (name, value) not in free])
    return draw.random.choice(OF_TENSOR[way]).format(text)


def _in_list(draw: Draw, name: str, text: str, free: frozenset[tuple[str, str]]) -> str:
    parts = split_list(text)
    filled = [i for i, part in enumerate(parts) if part != "None"]
    if not filled or draw.chance(0.25):
        whole = ["3", '"text"', "torch.ones(2, 2)", "{}", "iter([])"]
        whole += [] if (name, "None") in free else ["None"]
        if len(parts) and (name, "length") not in free:
            whole.append(_list(parts[:-1]))
        return draw.random.choice(whole)
    place = draw.random.choice(filled)
    parts[place] = _of_tensor(draw, name, parts[place], free, none=(name, "None entry") not in free)
    return _list(parts)


def _list(parts: list[str]) -> str:
    return f"[{', '.join(parts)}]"


def split_list(text: str) -> list[str]:
    """The entries of a list's text."""
    parts, depth, begin = [], 0, 1
    for found in re.finditer(r"[\[\](),]", text):
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(found[0], 0)
        if (found[0] == "," and depth == 1) or depth == 0:
            part = text[begin : found.start()].strip()
            parts += [part] if part else []
            begin = found.end()
    return parts
