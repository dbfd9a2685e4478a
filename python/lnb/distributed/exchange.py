"""The exchange before a step of several ranks: second moments, added, and whether all ranks make one and the same step.

Ranks that train together must take part in the same exchanges, of the same sizes, whatever happens to one of them; else the
others wait until the group's timeout. So a rank's part in a step is *promised* when the step before ends: the buffer's layout is
that of the second moments that were switched on then. A rank that lost a layer since, or cannot make the step, keeps the promise
with zeros.

The buffer ends with a few numbers from which every rank sees whether the others are where it is: a digest of model, settings,
rates and step. Where it differs, every rank raises, before anything is written. A rank whose model changed since the promise
knows that the sizes may be others now: it exchanges the digest first, and the moments once all ranks agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lnb.distributed.failures import naming
from lnb.distributed.identity import Identity, require_alike
from lnb.distributed.late_flag import LateFlag
from lnb.distributed.moment_sum import MomentSum, Slot, begun
from lnb.layers.capture import Capture
from lnb.layers.claimed import Layer

_WHAT = "second moments"
_NUMBERS = 4  # by which digests are compared
_DIGITS = 24  # binary, of whole numbers that float32 adds up exactly


@dataclass(frozen=True)
class _Promise:
    """What this rank brings to the next exchange.

    Attributes:
        kinds: the slots that lie in one buffer, by device and dtype.
        structure: a digest of the model and settings that they are of; None before the ranks have compared theirs.
        step: the number of the step.
    """

    kinds: dict[tuple[torch.device, torch.dtype], list[Slot]] = field(default_factory=dict)
    structure: str | None = None
    step: int = -1


class MomentExchange:
    """The exchanges of one optimizer, step by step.

    Attributes:
        early: whether :meth:`launch` may be called before the step, on all ranks alike. Then second moments have a reduction
            of their own, and whatever else a step exchanges has another one.
    """

    def __init__(self) -> None:
        self.early = False
        self._promise = _Promise()
        self._captures: dict[Layer, list[Capture]] = {}
        self._launched: list[MomentSum] = []
        self._passes = 0  # backward passes since the last step, and before the launch
        self._launched_after = -1
        self._differed: LateFlag | None = None

    @property
    def gathers(self) -> bool:
        """Whether second moments are promised to the next step."""
        return bool(self._promise.kinds)

    def captures_of(self, layer: Layer) -> list[Capture]:
        """The captures of a layer, as many as the ranks agreed on: also of one that was detached here."""
        found, agreed = layer.captures, self._captures.get(layer)
        return found if agreed is None or len(found) == len(agreed) else agreed

    def require_kept(self) -> None:
        """Require that layers have the captures that this step exchanges.

        Raises:
            RuntimeError: a layer was detached and attached again.
        """
        for slots in self._promise.kinds.values():
            for slot in slots:
                if slot.capture not in slot.among:
                    raise RuntimeError(
                        f"step(): layer {slot.layer.name!r} was attached anew since the last step, and no rank makes this one; "
                        f"the next one can be made. Nothing was changed"
                    )

    def promise(self, layers: Iterable[Layer], step: int) -> None:
        """Note what the next step exchanges, once the ranks have compared their models.

        Args:
            layers: the layers that this optimizer moves.
            step: its number.
        """
        self.forget()
        if self._promise.structure is not None:
            self._promise = _Promise(self._kinds(layers), self._promise.structure, step)

    def note_pass(self, groups: list[Any] | None) -> None:
        """Note that a backward pass has ended. With ``groups`` it is the last one before the step, as far as the wrapper knows.

        Then the sums of what is gathered begin.
        """
        self._passes += 1
        if groups is None or not self.gathers:
            return
        self._drop()
        self._launched = [begun(kind, slots, groups, True) for kind, slots in self._promise.kinds.items()]
        self._launched_after = self._passes

    def forget(self) -> None:
        """Begin anew after the gradients were dropped."""
        self._drop()
        self._passes, self._launched_after = 0, -1

    def fill_missing(self, layers: Iterable[Layer]) -> None:
        """Note zeros for layers that no backward pass of this rank reached, but that have a gradient from other ranks."""
        for layer in layers:
            for capture in layer.captures if layer.weight.grad is not None else ():
                for probe in capture.live_probes():
                    if probe.grad is None:
                        probe.grad = probe.new_zeros(probe.shape)

    def _drop(self) -> None:
        for part in self._launched:
            part.wait()
        self._launched = []

    def add(
        self,
        layers: list[Layer],
        groups: list[Any],
        size: int,
        device: torch.device,
        identity: Identity,
        failed: bool | Tensor = False,
        counts: bool = True,
    ) -> Tensor:
        """Add what the captures of ``layers`` gathered over ranks, and compare where the ranks are.

        Args:
            layers: the layers that this optimizer moves.
            groups: the groups of ranks; with several, the sums over one are added over the next.
            size: the number of all ranks.
            device: of the model.
            identity: of this rank's model, settings, rates and step.
            failed: this rank cannot make the step, a bool or a tensor ``[]``.
            counts: whether its samples are its own; what ranks with the same samples gather counts once.

        Returns:
            ``[1]``: finite, or NaN if a rank cannot make the step. The host does not wait for it.

        Raises:
            RuntimeError: the ranks have different models, settings or rates, or are at different steps; on every rank, with the
                first difference. Or the exchange failed, as where a rank has ended. Nothing was changed.
        """
        self._raise_late()
        if (identity.structure, identity.step) != (self._promise.structure, self._promise.step):
            with naming(_WHAT, size, "Nothing was changed"):
                header, _ = self._reduce(groups, size, device, identity, failed, False)
            flag = self._compare(header, groups, size, identity, True)
            if failed is True or not bool(flag.isfinite()):
                return flag  # the next step compares
            self._captures = {layer: layer.captures for layer in layers}
            self._promise = _Promise(self._kinds(layers), identity.structure, identity.step)
        with naming(_WHAT, size, "Nothing was changed"):
            header, sums = self._reduce(groups, size, device, identity, failed, True, counts)
        flag = self._compare(header, groups, size, identity, header.is_cpu)
        if failed is not True:
            for part in sums:
                part.give()
        return flag

    def _reduce(
        self,
        groups: list[Any],
        size: int,
        device: torch.device,
        identity: Identity,
        failed: bool | Tensor,
        fills: bool,
        counts: bool = True,
    ) -> tuple[Tensor, list[MomentSum]]:
        """Exchange what is promised; the first header, and all sums."""
        kinds = self._promise.kinds
        apart: list[MomentSum] = []
        if self.early:
            if self._launched_after == self._passes:
                apart = self._launched
            else:
                self._drop()
                apart = [begun(kind, slots, groups, fills) for kind, slots in kinds.items()]
            self._launched, self._launched_after, kinds = [], -1, {}
        together = [
            MomentSum(slots, *kind, _NUMBERS + 1) for kind, slots in (kinds or {(device, torch.float32): []}).items()
        ]
        for part in together:
            if fills:
                part.fill(counts)
            for i, number in enumerate(identity.numbers(size, _NUMBERS, _DIGITS)):
                part.header[i] = number
            if isinstance(failed, Tensor):
                part.header[-1:].masked_fill_(failed.to(part.header.device), math.nan)
            elif failed:  # it takes no part in the comparison
                part.header.fill_(math.nan)
            part.start(groups)
        for part in (*apart, *together):
            part.wait()
        return together[0].header.clone(), [*apart, *together]  # a view would keep the moments beside it

    def _compare(self, header: Tensor, groups: list[Any], size: int, identity: Identity, waits: bool) -> Tensor:
        """Raise if ranks differ and this one waits for the comparison; else return the flag.

        If the sum is this rank's own number times the number of ranks, all numbers are equal, but for chances of 2^-40 and
        less.
        """
        own = [size * number for number in identity.numbers(size, _NUMBERS, _DIGITS)]
        numbers, flag = header[:_NUMBERS], header[_NUMBERS:]
        if waits:
            found = numbers.tolist()
            if all(map(math.isfinite, found)) and found != own:
                alone = not header.is_cpu and self._promise.structure is not None  # others do not wait
                require_alike(identity, () if alone else groups)
        else:
            differ = torch.stack([number != value for number, value in zip(numbers.unbind(), own, strict=True)]).any()
            differ &= numbers.isfinite().all()
            flag.masked_fill_(differ, math.nan)
            self._differed = LateFlag(differ)
        return flag

    def _kinds(self, layers: Iterable[Layer]) -> dict[tuple[torch.device, torch.dtype], list[Slot]]:
        """The places of all probes that are switched on, of layers that are not frozen."""
        kinds: dict[tuple[torch.device, torch.dtype], list[Slot]] = {}
        for layer in layers:
            whole = self.captures_of(layer) if layer.weight.requires_grad else []
            for capture in (part for one in whole for part in one.live_captures()):
                for probe in capture.live_probes():
                    slot = Slot(layer, capture, probe is capture.channel_probe, tuple(probe.shape))
                    kinds.setdefault((probe.device, probe.dtype), []).append(slot)
        return kinds

    def _raise_late(self) -> None:
        """On accelerators, raise for a difference found in the last step: the host never waits for a step's own gradients."""
        differed, self._differed = self._differed, None
        if differed is not None and differed.read():
            raise RuntimeError(
                "step(): the ranks that train this model together had different models, settings or rates, or were at different "
                "steps, at the step before, which changed nothing. Set rates alike on every rank, and load states on all of them"
            )
