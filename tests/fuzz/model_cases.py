"""One model case: drawn, run, judged, and as a program of its own."""

from __future__ import annotations

import random
import re
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from fuzz import model_parts
from fuzz.builders import normal
from fuzz.case import sources
from fuzz.judge import HARNESS, OK, REFUSED, UNNAMED, UNWANTED, WRONG
from fuzz.model_check import check_model, passes
from fuzz.model_draw import Model, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

PARTS = ("Checkpointed", "Residual", "SelfAttention", "Recurrent", "ComplexLayer", "Unused")


@dataclass(frozen=True)
class ModelCase:
    """A model, its data and its optimizer's settings, as text."""

    family: str
    make: str
    batches: str
    options: str
    save_at: int
    names: tuple[str, ...]


def tokens(seed: int, words: int, shape: tuple[int, ...]) -> Tensor:
    """Random word numbers."""
    return torch.randint(0, words, shape, generator=torch.Generator().manual_seed(seed))


def case_of_model(seed: int) -> ModelCase:
    """The case of a seed."""
    rng = random.Random(seed)
    model, chosen = Model(rng), settings(rng)
    steps = rng.choice((3, 4, 6))
    inputs = [
        [model.input.format(rng.randrange(1 << 31)) for _ in range(rng.choice((1, 1, 1, 2)))] for _ in range(steps)
    ]
    batches = ",\n    ".join(f"[{', '.join(batch)}]" for batch in inputs)
    shown = ", ".join(f"{name}={value if name == 'moment_dtype' else repr(value)}" for name, value in chosen.items())
    if any("ComplexLayer" in layer for layer in model.layers):
        shown += ", params=[p for p in model.parameters() if not p.is_complex()]"
    return ModelCase(
        f"model of {model.family}",
        model.program(rng.randrange(1 << 31)),
        f"[\n    {batches},\n]",
        f"lambda model: dict({shown})",
        rng.randrange(steps - 1),
        tuple(chosen),
    )


def name_of(seed: int) -> str:
    """The family of a seed's model."""
    return case_of_model(seed).family


def snippet_of_model(seed: int, headline: str) -> str:
    """A program that trains the model of a seed and says what is wrong; it needs ``lnb`` and torch alone."""
    case = case_of_model(seed)
    used = [getattr(model_parts, name) for name in PARTS if f"{name}(" in case.make]
    used += [function for function in (tokens, normal) if f"{function.__name__}(" in case.make + case.batches]
    lines = [f"# {line}" for line in f"{headline}: {case.family}, seed {seed}".splitlines()]
    lines += [
        "import io",
        "import lnb",
        "import torch",
        "from collections.abc import Callable, Sequence",
        "from typing import Any",
        "from torch import Tensor, nn",
        "from torch.nn.utils import parametrizations, prune",
        "from torch.utils.checkpoint import checkpoint",
        "",
        *sources([*used, check_model]),
        case.make,
        f"batches = {case.batches}",
        f"options = {case.options}",
        f"print(check_model(make, batches, options, {case.save_at}))",
    ]
    return "\n".join(lines) + "\n"


def describe(seed: int) -> tuple[str, str, str, str]:
    """``(family, judgement, detail, snippet)`` of the case of a seed."""
    case = case_of_model(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judgement, detail = _judge(case)
    if judgement in (OK, REFUSED):
        return case.family, judgement, "", ""
    return case.family, judgement, detail, snippet_of_model(seed, f"{judgement}: {detail}")


def _judge(case: ModelCase) -> tuple[str, str]:
    scope: dict[str, Any] = {name: getattr(model_parts, name) for name in PARTS}
    scope |= {"torch": torch, "nn": nn, "normal": normal, "tokens": tokens}
    scope |= {"parametrizations": parametrizations, "prune": prune}
    exec(case.make, scope)
    make, batches, options = scope["make"], eval(case.batches, scope), eval(case.options, scope)
    try:
        passes(make(), batches[0], 0)
    except Exception:
        return HARNESS, traceback.format_exc(limit=-4)
    try:
        wrong = check_model(make, batches, options, case.save_at)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        refused = any(frame.name == "__init__" and frame.filename.endswith("optimizer.py") for frame in frames)
        said = f"{type(error).__name__}: {error}"
        if not refused:
            return UNWANTED, traceback.format_exc(limit=-6)
        known = (*case.names, "model", "params")
        if isinstance(error, (ValueError, TypeError)) and any(re.search(rf"\b{name}\b", str(error)) for name in known):
            return REFUSED, said
        return UNNAMED, said
    return (OK, "") if wrong is None else (WRONG, wrong)
