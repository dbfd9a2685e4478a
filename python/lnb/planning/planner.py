"""The settings of every layer of one optimizer: what was asked for, as far as budgets and costs leave it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from lnb.config import Config, current_name
from lnb.layers.capture import Samples
from lnb.layers.claimed import Layer
from lnb.planning.choice import Choice, bytes_kept, first_choice
from lnb.planning.measured import rates_for
from lnb.planning.memory_budget import fit_memory
from lnb.planning.rates import Rates
from lnb.planning.time_budget import Limits, TimeBudget

_CHOSEN = ("solver", "trust_region", "refresh_every", "sample_every", "block_size", "b_s")


class Planner:
    """Decides once for every layer, when the samples of its first step are known, and remembers it.

    Everything is stored by the layer's name, so that it can go into a state dict and to copies of the optimizer.

    Attributes:
        choices: the layers decided on, with the reasons.
        samples: the numbers of samples of their first steps.
    """

    def __init__(self, config: Config, rates: Rates | None) -> None:
        self.config = config
        self.choices: dict[str, Choice] = {}
        self.samples: dict[str, Samples] = {}
        self._first = first_choice(config)
        self._fitted: dict[str, Choice] = {}  # to the budget of memory, before samples are known
        self._given = rates

    @property
    def _decides(self) -> bool:
        """Whether costs decide anything."""
        return self.config.max_overhead is not None or self.config.undecided

    def choice(self, layer: Layer) -> Choice:
        """The settings of a layer at present."""
        return self.choices.get(layer.name) or self._fitted.get(layer.name) or self._first

    def waits_for_samples(self, layer: Layer) -> bool:
        """Whether the next step is the one whose samples are counted."""
        return layer.name not in self.samples

    def is_open(self, layer: Layer) -> bool:
        """Whether the layer's settings are still to be decided."""
        return self._decides and layer.name not in self.choices

    def fit_memory(self, layers: list[Layer], other_bytes: Callable[[], int]) -> None:
        """Bring the layers not decided on into the budget of memory.

        Raises:
            ValueError: ``max_state_bytes`` is less than any settings need.
        """
        if self.config.max_state_bytes is None:
            return
        decided = [layer for layer in layers if layer.name in self.choices]
        taken = sum(
            bytes_kept(layer, self.choices[layer.name].config, self.samples.get(layer.name)) for layer in decided
        )
        undecided = {layer: self._first for layer in layers if layer.name not in self.choices}
        fitted = fit_memory(undecided, self.config.max_state_bytes, other_bytes() + taken)
        self._fitted = {layer.name: choice for layer, choice in fitted.items()}

    def observe(self, layers: list[Layer], other_bytes: Callable[[], int], dual: bool) -> None:
        """Note how many samples the layers saw, and decide on those that had none before.

        Args:
            layers: all layers.
            other_bytes: tells the bytes of state of parameters of no layer.
            dual: whether the ridge allows the dual solver.
        """
        waiting = {layer: layer.samples for layer in layers if self.waits_for_samples(layer)}
        if not waiting:
            return
        seen = [layer for layer, samples in waiting.items() if samples.count > 0]
        before = self.samples
        try:
            self.samples = before | {layer.name: waiting[layer] for layer in seen}
            if not self._decides:
                self.choices |= {layer.name: self.choice(layer) for layer in seen}
            elif seen:
                self._decide(layers, seen, other_bytes, dual)
        except BaseException:  # samples without a decision would never be decided on
            self.samples = before
            raise

    def _decide(self, layers: list[Layer], seen: list[Layer], other_bytes: Callable[[], int], dual: bool) -> None:
        known = {layer: self.samples[layer.name] for layer in layers if layer.name in self.samples}
        fixed = {layer: self.choices[layer.name] for layer in known if layer.name in self.choices}
        asked = {layer: self.choice(layer) for layer in seen if layer not in fixed}
        unseen = sum(bytes_kept(layer, self.choice(layer).config, None) for layer in layers if layer not in known)
        limits = Limits(self.config.max_overhead, self.config.max_state_bytes, other_bytes() + unseen, dual)
        budget = TimeBudget(asked, fixed, known, self.rates(known), limits)
        self.choices |= {layer.name: choice for layer, choice in budget.choose().items()}
        overhead = budget.overhead()
        if self.config.max_overhead is not None and overhead > self.config.max_overhead:
            warnings.warn(
                f"max_overhead={self.config.max_overhead:g} cannot be met: the cheapest settings are predicted to add "
                f"{overhead:.2g} of the forward and backward passes' time. See plan(); a larger batch or another trust_region "
                f"makes it less",
                stacklevel=5,
            )

    def rates(self, layers: Iterable[Layer], given: Rates | None = None) -> dict[torch.device, Rates]:
        """The rates of the layers' devices; measured where they were neither given nor measured before."""
        chosen = given or self._given
        devices = dict.fromkeys(layer.weight.device for layer in layers)
        return {device: chosen or rates_for(device) for device in devices}

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was decided, and from how many samples, as plain values."""
        layers = {}
        for name, choice in {**self._fitted, **self.choices}.items():
            own, asked = (
                {field: getattr(config, field) for field in _CHOSEN} for config in (choice.config, self._first.config)
            )
            layers[name] = {
                **{field: own[field] for field in _CHOSEN if own[field] != asked[field]},
                "reason": choice.reason,
            }
        samples = {name: [samples.count, samples.input_grad] for name, samples in self.samples.items()}
        asked = {
            field: getattr(self._first.config, field) for field in _CHOSEN
        }  # for who reads a state without an optimizer
        return {"layers": layers, "rows": samples, "decided": sorted(self.choices), "asked": asked}

    def restored(self, saved: Any) -> Planner:
        """A planner that goes on from :meth:`state_dict`'s result; from None as from the start.

        Raises:
            ValueError: ``saved`` is something else, or holds a value that is not allowed.
        """
        planner = Planner(self.config, self._given)
        planner._fitted = dict(self._fitted)
        if saved is None:
            return planner
        try:
            if not isinstance(saved, dict):
                raise TypeError(f"it must be a dict, not {type(saved).__name__}")
            planner._restore(saved)
        except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
            raise ValueError(f"state_dict: lnb_plan={saved!r} is not what LNB.state_dict() writes: {error}") from error
        return planner

    def _restore(self, saved: Mapping[str, Any]) -> None:
        for name, (count, input_grad) in saved["rows"].items():
            if type(count) is not int or count < 0 or type(input_grad) is not bool:
                raise ValueError(
                    f"rows of layer {name!r} are {[count, input_grad]!r}, not a count and whether it has a gradient"
                )
            self.samples[name] = Samples(count, input_grad)
        decided = set(saved["decided"])
        for name, values in saved["layers"].items():
            settings = {field: current_name(value) for field, value in values.items() if field != "reason"}
            if not settings.keys() <= set(_CHOSEN):
                raise ValueError(f"layer {name!r} has {sorted(settings)}")
            if type(values["reason"]) is not str:
                raise ValueError(f"the reason of layer {name!r} is {values['reason']!r}, not a str")
            choice = Choice(dataclasses.replace(self._first.config, **settings), values["reason"])
            (self.choices if name in decided else self._fitted)[name] = choice
