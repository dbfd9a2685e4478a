"""Which model, settings, rates and step a rank has: in numbers that an exchange can compare, and in words for a message."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lnb.config import CARRIED, Config


@dataclass(frozen=True)
class Identity:
    """What all ranks that train together must have in common at a step.

    Attributes:
        structure: a digest of parameters and settings.
        step: the number of the step.
        rates: what the host knows of ``lr``, ``weight_decay`` and ``ridge`` of every group; None for a number that is on an
            accelerator.
        describe: gives all of it in words, line by line.
    """

    structure: str
    step: int
    rates: tuple[float | None, ...]
    describe: Callable[[], list[str]]

    def numbers(self, ranks: int, count: int, digits: int) -> list[int]:
        """Whole numbers that differ between ranks if anything else does; their sum has at most ``digits`` binary digits."""
        digest = hashlib.sha256(repr((self.structure, self.step, self.rates)).encode()).digest()
        largest = 1 << max(1, digits - (ranks - 1).bit_length())
        return [int.from_bytes(digest[4 * i : 4 * i + 4], "big") % largest for i in range(count)]


class Identifier:
    """Makes the identities of one optimizer; looks through its parameters only when they have changed."""

    def __init__(self) -> None:
        self._known: list[tuple[nn.Parameter, bool, torch.dtype]] = []
        self._structure = ""

    def of(
        self, config: Config, param_groups: list[dict[str, Any]], names: dict[nn.Parameter, str], step: int
    ) -> Identity:
        """The identity of an optimizer with ``config`` and ``param_groups``, before its step number ``step``."""

        def describe() -> list[str]:
            rates = [
                f"param_groups[{i}] with { {name: float(group[name]) for name in CARRIED} }"
                for i, group in enumerate(param_groups)
            ]
            return [*_structure(config, param_groups, names), *rates, f"step {step}"]

        found = [(p, p.requires_grad, p.dtype) for group in param_groups for p in group["params"]]
        if len(found) != len(self._known) or any(map(_differ, found, self._known)):
            self._known = found
            self._structure = hashlib.sha256("\n".join(_structure(config, param_groups, names)).encode()).hexdigest()
        rates = tuple(_known_number(group[name]) for group in param_groups for name in CARRIED)
        return Identity(self._structure, step, rates, describe)


def require_alike(identity: Identity, groups: Iterable[Any]) -> None:
    """Find out how ranks that are known to differ do so, and say it.

    Args:
        identity: of this rank.
        groups: of the ranks that take part; none where the others do not know of it.

    Raises:
        RuntimeError: always, with the first difference; on every rank.
    """
    lines: dict[int, list[str]] = {}
    for group in groups:
        given: list[Any] = [None] * group.size()
        dist.all_gather_object(given, (dist.get_rank(), identity.describe()), group=group)
        lines |= dict(given)
    where = _difference(lines)
    raise RuntimeError(
        f"step(): the ranks that train this model together have different models or settings: {where}. Build the same model and "
        f"the same LNB on every rank, set rates alike, and load states on all. Nothing was changed"
    )


def _structure(config: Config, param_groups: list[dict[str, Any]], names: dict[nn.Parameter, str]) -> list[str]:
    found = [f"{setting.name}={getattr(config, setting.name)!r}" for setting in dataclasses.fields(config)]
    for number, group in enumerate(param_groups):
        found.append(f"param_groups[{number}] of {len(group['params'])} parameters")
        for parameter in group["params"]:
            placed = getattr(parameter, "placements", "whole")
            moves = "" if parameter.requires_grad else ", frozen"
            name = names.get(parameter, "(added)")
            found.append(f"parameter {name!r} {tuple(parameter.shape)} {parameter.dtype} {placed}{moves}")
    return found


def _differ(found: tuple[nn.Parameter, bool, torch.dtype], known: tuple[nn.Parameter, bool, torch.dtype]) -> bool:
    return found[0] is not known[0] or found[1:] != known[1:]


def _known_number(value: Any) -> float | None:
    return None if isinstance(value, Tensor) and not value.is_cpu else float(value)


def _difference(lines: dict[int, list[str]]) -> str:
    """Which ranks differ, and in what."""
    if not lines:
        return "those of this rank changed since the step before, and others' did not"
    (rank, own), *others = sorted(lines.items())
    for other, found in others:
        for i in range(max(len(own), len(found))):
            a, b = (known[i] if i < len(known) else "nothing more" for known in (own, found))
            if a != b:
                return f"rank {rank} has {a}, rank {other} has {b}"
    return "ranks of another group differ"
