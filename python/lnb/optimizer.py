"""``LNB``: the optimizer as users see it: construction, parameter groups, state, step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lnb import update
from lnb.attach import attach
from lnb.blocks import take_inventory
from lnb.config import Config, check_group, resolve_config
from lnb.coverage import Coverage, CoverageRow
from lnb.schedule import is_refresh_step
from lnb.serialization import FORMAT, check_state, restore_exactly
from lnb.verdict import Verdict
from lnb.work import check_finite, collect, has_statistics


class LNB(Optimizer):
    """Linear Neuron Boosting: every linear layer's gradient times the inverse second moment of the layer's inputs.

    The step of a layer with weight and bias ``W~ = [W b]`` (``[d_out, d_in + 1]``) and inputs ``x`` is
    ``h = g~ (E[x~ x~'] + ridge)^-1`` with ``x~ = [x 1]`` and ``g~`` the averaged gradient: steepest descent in the space of
    the functions that the layer computes, instead of in the space of its parameters (D. Munoz, "Simple Linear Neuron
    Boosting", arXiv:2502.01131). All parameters move by ``theta <- theta - lr (h / z + weight_decay theta)``.

    ``nn.Linear`` and ``nn.Conv2d`` layers are claimed (see :meth:`coverage`); for other parameters ``h = g~``.

    What happens in the cases that training loops meet:

    * *Gradient accumulation*: several backward passes before ``step()`` add their rows to one second moment.
    * *A layer used more than once* in a forward pass, or parameters shared by several layers: the rows of all uses count.
    * *No gradient* (``grad is None``: frozen, or not reached): the parameter and its state stay untouched.
    * *Frozen bias*: the metric is that of the weight alone. *Frozen weight*: the bias moves like an other parameter.
    * *Eval mode* makes no difference: what counts is whether a backward pass went through the layer.
    * *A batch without rows*: statistics stay as they are and the layer does not move.
    * *NaN or inf in a gradient or an input*: the step changes nothing and is counted in :meth:`diagnostics`.

    Args:
        model: the model to attach to; its linear and convolution layers are changed in place by :func:`lnb.attach`.
        lr: learning rate, a number or a 0-dim tensor. With the trust region ``"global"`` it is the size of the step in
            the metric: the root mean square change of the layers' outputs that one step makes.
        preset: ``"fast"`` or ``"paper"``.
        params: parameters or parameter groups to optimize; None for all of the model's. A group can carry its own
            ``lr``, ``weight_decay`` and ``ridge``.
        exclude: modules whose parameters are treated as others.
        strict: raise ``FloatingPointError`` on NaN or inf instead of skipping the step (waits for the device).
        settings: any field of :class:`lnb.config.Config`, in place of the preset's value.

    Raises:
        ValueError: a value is not allowed, or the model has no layer to claim.
        TypeError: a value is of the wrong type, or a setting is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor = 0.1,
        preset: str = "fast",
        *,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        exclude: Iterable[nn.Module] = (),
        strict: bool = False,
        **settings: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r} must be a torch.nn.Module, not {type(model).__name__}")
        config = resolve_config(preset, settings)
        defaults = {"lr": lr, "weight_decay": config.weight_decay, "ridge": config.ridge}
        check_group(defaults)
        exclude = list(exclude)
        self._model = model
        self._config = config
        self._strict = strict
        self._exclude = exclude
        self._counters: dict[str, Tensor | int] = {"steps": 0, "skipped_steps": 0}
        self._step_index = 0
        attach(model, exclude)
        self._inventory = take_inventory(model, exclude)
        if not self._inventory.blocks:
            reasons = "\n".join(f"  {self._row(parameter)}" for parameter in self._inventory.names)
            raise ValueError(
                f"model={type(model).__name__} has no layer that LNB can claim (nn.Linear or nn.Conv2d that owns its "
                f"weight); use another optimizer for it, or see why:\n{reasons or '  it has no parameters'}"
            )
        super().__init__(list(model.parameters()) if params is None else params, defaults)
        self._switch_captures()

    @property
    def config(self) -> Config:
        """The settings in force, read-only."""
        return self._config

    # -- parameter groups ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own ``lr``, ``weight_decay`` or ``ridge``. Nothing is added if a value is wrong."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group={param_group!r} must be a dict, not {type(param_group).__name__}")
        allowed = {"params", "param_names", *self.defaults}
        for name in param_group:
            if name not in allowed and name != "initial_lr":
                raise ValueError(
                    f"param group: {name!r} cannot be set per group; what can is {', '.join(sorted(self.defaults))}"
                )
        check_group({**self.defaults, **{k: v for k, v in param_group.items() if k in self.defaults}})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.is_complex():
                self.param_groups.pop()
                raise TypeError("params: complex parameters are not supported; view them as real")

    # -- the step -----------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step.

        Args:
            closure: reevaluates the model and returns the loss (it calls ``zero_grad`` and ``backward`` itself).

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: a claimed layer has a gradient but its input was not seen; nothing was changed.
            FloatingPointError: NaN or inf was met and ``strict`` is set; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            check_group(group)
        work = collect(self._inventory.blocks, self.param_groups, self.state)
        rejected = False
        if work.parameters:
            verdict = check_finite(work, wait=self._strict)
            rejected = verdict.rejected
            if not rejected:
                verdict, _ = update.run(work, verdict, self._config)
            self._count(verdict)
            self._step_index += 1
        self._clear_captures()
        self._switch_captures()
        if rejected and self._strict:
            raise FloatingPointError(
                "step(): NaN or inf in a gradient or in the input of a claimed layer; parameters and state are unchanged. "
                "Lower lr, clip the gradients, or drop strict=True to skip such steps"
            )
        return loss

    def _count(self, verdict: Verdict) -> None:
        self._counters["steps"] = self._counters["steps"] + 1
        self._counters["skipped_steps"] = self._counters["skipped_steps"] + verdict.rejections()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and forget the inputs that came with them."""
        super().zero_grad(set_to_none)
        self._clear_captures()

    def _clear_captures(self) -> None:
        for block in self._inventory.blocks:
            for capture in block.captures:
                capture.clear()

    def _switch_captures(self) -> None:
        config = self._config
        due = is_refresh_step(self._step_index, config.refresh_every)
        for block in self._inventory.blocks:
            moments, channels, inputs = config.needs(due or not has_statistics(self.state.get(block.weight)))
            for capture in block.captures:
                capture.switch(block.weight, moments=moments, channels=channels, inputs=inputs)

    # -- reports ------------------------------------------------------------------------------------------------------

    def coverage(self) -> Coverage:
        """Which metric every parameter gets, and why: the model's parameters, then any other that was added."""
        known = list(self._inventory.names)
        added = [p for group in self.param_groups for p in group["params"] if p not in self._inventory.names]
        return Coverage(tuple(self._row(parameter) for parameter in known + added))

    def _row(self, parameter: nn.Parameter) -> CoverageRow:
        name = self._inventory.names.get(parameter, "(added)")
        metric, reason = self._metric(parameter)
        return CoverageRow(name, tuple(parameter.shape), metric, reason)

    def _metric(self, parameter: nn.Parameter) -> tuple[str, str]:
        optimized = {p for group in getattr(self, "param_groups", ()) for p in group["params"]}
        if optimized and parameter not in optimized:
            return "none", "in no parameter group: not optimized"
        if not parameter.requires_grad:
            return "none", "frozen (requires_grad is False)"
        for block in self._inventory.blocks:
            if parameter is block.weight or parameter is block.bias:
                kind = "convolution" if block.is_convolution else "linear layer"
                if parameter is block.bias and not (block.weight.requires_grad and block.weight in optimized):
                    return self._config.others, f"bias of {kind} {block.name!r} whose weight does not move"
                return "second moment", f"{kind} {block.name!r}: {block.describe()}"
        return self._config.others, self._inventory.reasons.get(parameter, "not a parameter of the attached model")

    def diagnostics(self) -> dict[str, float]:
        """Counters since construction: ``steps``, and ``skipped_steps`` that met NaN or inf. Waits for the device."""
        return {name: int(value) for name, value in self._counters.items()}

    # -- saving and copying -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict, with ``lnb_format``; tensors are shared with the optimizer, as torch does."""
        return {**super().state_dict(), "lnb_format": FORMAT, "lnb_step": self._step_index}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, bit for bit. Settings other than the groups' stay as constructed.

        Raises:
            TypeError: it is not such a dict.
            ValueError: it belongs to another model, and nothing was changed.
        """
        check_state(state_dict, self.param_groups, self._inventory.blocks, self._inventory.names)
        super().load_state_dict(state_dict)
        restore_exactly(state_dict, self.param_groups, self.state)
        self._step_index = state_dict["lnb_step"]
        self._clear_captures()
        self._switch_captures()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_model", "_config", "_strict", "_exclude", "_counters", "_inventory", "_step_index")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}
