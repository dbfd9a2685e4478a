"""One case: a call of an op as text, and the self-contained program that shows what it does."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fuzz import builders
from torch import Tensor

import lnb_kernels as lk

Values = dict[str, Any]
Truth = Callable[[Values, Values], dict[str, tuple[Any, Any]]]

MODES = {
    "no_grad": "torch.no_grad()",
    "grad": "torch.enable_grad()",
    "inference": "torch.inference_mode()",
    "autocast": 'torch.autocast("cpu", torch.bfloat16)',
}


@dataclass
class Case:
    """A call, before it is made.

    Attributes:
        op: the function's name within ``lnb_kernels``.
        arguments: text of every argument by its name, in the order in which they are built. A later one can use an earlier
            one; names with a leading ``base`` are only that.
        truth: ``(before, after) -> {name: (value in float64, error allowed)}`` of what the call returns, ``"result"`` or
            ``"result[0]"``, and of what it writes, ``"averages[0]"``. ``before`` holds copies of the arguments.
        written: the arguments that the call writes to.
        bad: the argument that is at fault, if one is.
        fault: the text of what is wrong with it.
        names: other words by which messages may name the argument.
        may_refuse: why the call may be refused though its arguments are of the right kind.
        call: the program that makes the call; None for the plain call by keyword.
    """

    op: str
    arguments: dict[str, str]
    truth: Truth
    written: tuple[str, ...] = ()
    backend: str = "auto"
    mode: str = "no_grad"
    bad: str | None = None
    fault: str = ""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    may_refuse: set[str] = field(default_factory=set)
    call: str | None = None
    fake: bool = False

    @property
    def program(self) -> str:
        """The text of the call, which sets ``result``."""
        if self.call is not None:
            return self.call
        given = ", ".join(f"{name}={name}" for name in self.arguments if not name.startswith("base"))
        return f"result = lk.{self.op}({given})"


def build(case: Case) -> Values:
    """The arguments of the case."""
    values: Values = {}
    for name, text in case.arguments.items():
        values[name] = eval(text, {**NAMES, **values})
    return values


def run_program(case: Case, values: Values) -> Any:
    """Make the call; returns its result."""
    scope = {**NAMES, **values}
    with eval(MODES[case.mode], NAMES):
        exec(case.program, scope)
    return scope["result"]


def entries(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """The tensors and numbers within ``value``, by the text that leads to them."""
    if isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            yield from entries(f"{name}[{i}]", entry)
    else:
        yield name, value


def plain(value: Tensor) -> Tensor:
    """``value`` as an ordinary tensor without history, negation bit or inference mark."""
    value = getattr(value, "held", value)
    if value.layout != torch.strided or value.is_meta:
        return value.detach()
    with torch.no_grad():
        return value.detach().as_subclass(torch.Tensor).resolve_neg().clone()


def copies(values: Values) -> Values:
    """Every tensor of the arguments as an ordinary one of its own."""
    return {name: _copy(value) for name, value in values.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return plain(value)
    return [_copy(entry) for entry in value] if isinstance(value, (list, tuple)) else value


NAMES: Values = {
    name: value
    for name, value in vars(builders).items()
    if isinstance(value, (types.FunctionType, type)) and value.__module__ == builders.__name__
} | {"torch": torch, "F": F, "lk": lk, "float": float}


def snippet(case: Case, headline: str) -> str:
    """A program that makes the call and shows what is wrong with it; it needs ``lnb_kernels`` and torch alone."""
    used = [NAMES[name] for name in NAMES if any(f"{name}(" in text for text in case.arguments.values())]
    used = [value for value in used if getattr(value, "__module__", "") == builders.__name__]
    used += [plain, entries, copies, case.truth]
    lines = [f"# {line}" for line in headline.splitlines()]
    lines += [
        "import math",
        "import lnb_kernels as lk",
        "import torch",
        "import torch.nn.functional as F",
        "from torch import Tensor",
        "from torch.utils._pytree import tree_map",
        "from typing import Any",
        "from collections.abc import Iterable, Sequence",
        "Values = dict",
        "",
        *sources(used),
    ]
    lines += [f"{name} = {text}" for name, text in case.arguments.items()]
    lines += [
        f"arguments = dict({', '.join(f'{name}={name}' for name in case.arguments)})",
        "before = copies(arguments)",
        f"lk.set_backend({case.backend!r})",
        f"with {MODES[case.mode]}:",
        "    try:",
        *("        " + line for line in case.program.splitlines()),
        "    except Exception as error:",
        "        result = None",
        '        print("raised", type(error).__name__, error)',
        "after = dict(arguments, result=result)",
    ]
    if case.bad is not None:
        lines += [f"# {case.bad} is wrong: the call must be refused, name it, and have changed nothing"]
    lines += [f"for written in {case.written!r}:", "    print(written, 'was', before[written], 'is', after[written])"]
    if case.bad is None:
        lines += [
            "for name, (want, allowed) in truth(before, after).items():",
            "    print(name, 'got', eval(name), 'want', want, 'allowed error', allowed)",
        ]
    text = "\n".join(lines) + "\n"
    return text.replace("truth(before, after)", f"{case.truth.__name__}(before, after)")


def sources(values: Iterable[Any]) -> list[str]:
    """The text of functions, classes and constants of this package, and of what they use of it."""
    found: dict[str, str] = {}
    for value in values:
        _add_source(value, found)
    return list(found.values())


def _add_source(value: Any, found: dict[str, str]) -> None:
    name = value.__name__
    if name in found:
        return
    found[name] = ""  # in work: recursion ends here
    scope = vars(inspect.getmodule(value))
    for used in sorted(_names_in(value)):
        other = scope.get(used)
        if used in found or other is value or inspect.ismodule(other):
            continue
        if isinstance(other, (types.FunctionType, type)) and other.__module__.startswith("fuzz"):
            _add_source(other, found)
        elif isinstance(other, (int, float, str, tuple, dict)) and used.isupper():
            found[used] = f"{used} = {other!r}\n"
        elif used == "GENERATOR":
            found[used] = "GENERATOR = torch.Generator()\n"
    text = found.pop(name)
    found[name] = text or inspect.getsource(value)


def _names_in(value: Any) -> set[str]:
    codes = [value.__code__] if isinstance(value, types.FunctionType) else []
    if isinstance(value, type):
        for member in vars(value).values():
            member = getattr(member, "__func__", member)
            codes += [member.__code__] if isinstance(member, types.FunctionType) else []
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return names
