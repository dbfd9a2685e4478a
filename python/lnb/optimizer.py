"""``LNB``: the optimizer as users see it: construction, parameter groups, state, step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # as torch.optim's: torch.compiler.disable imports the compiler at once
from torch.optim import Optimizer

from lnb.config import DEFAULT_LR, Config, check_group, resolve_config
from lnb.context import StepContext, check_finite, collect, has_statistics, mark_zeroed, moment_blocks
from lnb.coverage import Coverage, CoverageRow
from lnb.distributed.exchange import MomentExchange
from lnb.distributed.identity import Identifier, Identity
from lnb.distributed.ranks import Joint, Ranks
from lnb.groups import check_keys, check_switches
from lnb.guard import StepGuard
from lnb.layers.attach import attach_layers, detach_layer, require_module
from lnb.layers.claimed import Layer, take_inventory
from lnb.layers.registry import claimed_names
from lnb.loss_rise import as_loss, shorten_where_risen
from lnb.members import Members
from lnb.plan import Plan, plan_layer
from lnb.planning import Rates
from lnb.planning.memory import other_bytes
from lnb.planning.planner import Planner
from lnb.reports.diagnostics import LayerRecords
from lnb.reports.input_figures import figures_of_inputs
from lnb.reports.overhead import OverheadMeter
from lnb.routes.turned import Turned
from lnb.sharded.sharding import adopt_shards, refuse_flat, register_shards, release, shards_class
from lnb.state.portable import PROGRESS, asks_for_state, make_up_inputs, with_progress, write_progress
from lnb.state.schema import saved_settings
from lnb.state.serialization import (
    FORMAT,
    check_state,
    fits_groups,
    follow_parameters,
    restored_groups,
    restored_state,
)
from lnb.state.whole import of_whole, restart
from lnb.statistics.arenas import compact
from lnb.statistics.schedule import is_refresh_step, refresh_phases, sample_start
from lnb.statistics.tracked import Tracked
from lnb.step import Memory, Outcome, make_step
from lnb.verdict import Verdict
from lnb_kernels._captured import is_capturing
from lnb_kernels.moment_stream import join_moments

if TYPE_CHECKING:
    from lnb.sharded.shards import Shards


class LNB(Optimizer):
    """Linear Neuron Boosting: every linear layer's gradient times the inverse second moment of the layer's inputs.

    The step of a layer with weight and bias ``W~ = [W b]`` (``[d_out, d_in + 1]``) and inputs ``x`` is
    ``h = g~ (E[x~ x~'] + ridge)^-1`` with ``x~ = [x 1]`` and ``g~`` the averaged gradient: steepest descent in the space of
    the functions that the layer computes, instead of in the space of its parameters (D. Munoz, "Simple Linear Neuron
    Boosting", arXiv:2502.01131). All parameters move by ``theta <- theta - lr (h / z + weight_decay theta)``.

    The default preset, ``"fast"``, also divides by the root of the second moment of the neurons' gradients, and brings every
    neuron's row to unit size (:mod:`lnb.trust_regions.two_sided`): so ``lr`` is the most by which a step changes a neuron's
    output, root mean square over the inputs; of layers that see data, in proportion to its size where that is large. A
    second bound holds the change of the weights (both are derived in :mod:`lnb.weight_bound`), and steps get shorter where
    gradients oppose each other or are noise (:mod:`lnb.damping`). Both moments are averages that every tenth step refreshes, in
    diagonal blocks of at most 144 entries: the 9 taps of 16 channels, and few enough for a block's inverse to stay in a cache
    and for the state to be about AdamW's. The ridge is 0.2 of the mean variance of the inputs, and up to 2 more where a batch has
    few samples for the inputs (:func:`lnb.statistics.running.sample_ridge_of`). Parameters of no layer - norms, embeddings -
    follow Adam's rule (Kingma and Ba, 2015) at 0.15 ``lr``. These
    numbers were chosen on small image and text tasks; ``docs/results.md`` and ``docs/robustness.md`` show how they do.

    ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.MultiheadAttention`` layers are claimed (see :meth:`coverage`), and
    Transformers' ``Conv1D``, whose weight ``[d_in, d_out]`` is laid out by columns in memory, or copied
    (:mod:`lnb.routes.turned`).

    What happens in the cases that training loops meet:

    * *Gradient accumulation*: several backward passes before ``step()`` add their samples to one second moment.
    * *A layer used more than once* in a forward pass, or parameters shared by several layers: the samples of all uses count.
    * *One input for several layers*, as the projections of attention or the halves of a gated MLP: its second moment is
      computed once if they are given the same tensor object (not in compiled code, where each computes its own).
    * *Padding of a convolution*: a neuron's inputs are those of the padded image. The second moment counts its zeros like
      all other inputs. The averages of the channels (``b_mu``, ``b_nu``) count the pixels that the padding modes circular,
      reflect and replicate repeat, and leave out the zeros of zero padding, as the paper does.
    * *No gradient* (``grad is None``: frozen, or not reached): the parameter and its state stay untouched. The same
      holds where this optimizer's ``zero_grad(set_to_none=False)`` left zeros to which no backward pass added.
    * *Frozen bias*: the metric is that of the weight alone. *Frozen weight*: the bias moves like a parameter of no layer.
    * *Eval mode* makes no difference: what counts is whether a backward pass went through the layer.
    * *A batch without samples*: statistics stay as they are. A layer does not move, except that with a cached factor
      (``solver="cholesky"``) it goes on along its gradient average; weight decay acts as always.
    * *A model changed after attaching*: ``model.to(...)`` takes probes and state along; a claimed layer that was
      replaced, detached, or got another parameter is an error at the next step.
    * *Several ranks* (``DistributedDataParallel``, or ``process_group``): the samples of all ranks count, and all ranks take the
      same steps. A step that one rank cannot make is made by none: it raises there, and is skipped on the others; where ranks
      differ in model, settings, rates or step, all raise. Settings that keep inputs or choose by measured times are refused.
    * *Sharded parameters* (``fully_shard``, ``ColwiseParallel``, ``RowwiseParallel``): every rank solves the rows or columns
      that it has; blocks end where shards do (:mod:`lnb.sharded`).
    * *NaN or inf in a gradient or an input*: the step changes nothing and is counted in :meth:`diagnostics`. A layer whose
      direction is not finite though all gradients are stands still alone, and is counted there by its name. The same
      holds for a layer whose inputs are finite but whose squares are not, as beyond 1e19 in float32: they enter no average.

    Args:
        model: the model to attach to; its linear and convolution layers are changed in place by :func:`lnb.attach`.
        lr: learning rate, a number or a 0-dim tensor; None for the preset's (:data:`lnb.DEFAULT_LR`). With ``"fast"``, the most
            by which a step changes the output of any neuron, root mean square over the inputs; steps are shorter where
            weights would change by more than ``2.5 lr``, or a quarter, of their norm, and where gradients oppose each other
            or are noise.
            Other parameters follow Adam's rule at ``0.15 lr``. With the trust region ``"global"``, of the other presets, it
            is the root mean square change of all layers' outputs together.
        preset: ``"fast"``; ``"paper"``, arXiv:2502.01131 step by step; or ``"full_batch"``, for losses without noise.
        params: parameters or parameter groups to optimize; None for all of the model's. A group can carry its own
            ``lr``, ``weight_decay`` and ``ridge``.
        exclude: modules whose parameters are treated as others.
        strict: raise ``FloatingPointError`` on NaN or inf instead of skipping the step (waits for the device).
        rates: the device's speed for :meth:`plan` and all that is chosen by cost; None to measure it when that is needed,
            in about a second, and remember it on disk.
        process_group: the ranks that train this model together, over which second moments are added. ``"auto"`` takes those of
            the ``DistributedDataParallel`` that holds the model's parameters at the first step, whether it was made before
            or after the optimizer, or of ``fully_shard``; where there are several ranks and neither, that step is an error.
            None for this process alone.
        settings: any field of :class:`lnb.config.Config`, in place of the preset's value.

    Raises:
        ValueError: a value is not allowed, or the model has no layer to claim.
        TypeError: a value is of the wrong type, a setting is unknown, or parameters are cut through the rows of layers
            (``FullyShardedDataParallel``, DeepSpeed ZeRO).
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor | None = None,
        preset: str = "fast",
        *,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        exclude: Iterable[nn.Module] = (),
        strict: bool = False,
        rates: Rates | None = None,
        process_group: Any = "auto",
        **settings: Any,
    ) -> None:
        require_module("model", model)
        refuse_flat(model.parameters())
        config = resolve_config(preset, settings)
        defaults = {
            "lr": DEFAULT_LR[preset] if lr is None else lr,
            "weight_decay": config.weight_decay,
            "ridge": config.ridge,
        }
        check_group(defaults)
        if isinstance(exclude, nn.Module):
            raise TypeError(f"exclude={type(exclude).__name__}(...) must be a list of modules, not a module")
        exclude = list(exclude)
        self._model = model
        self._exclude = exclude
        self._config = config
        self._strict = strict
        self._counters: dict[str, Tensor | int] = {"steps": 0, "skipped_steps": 0}
        self._step_index = 0
        self._records = LayerRecords()
        if rates is not None and not isinstance(rates, Rates):
            raise TypeError(f"rates={rates!r} must be a lnb.planning.Rates, not {type(rates).__name__}")
        self._planner = Planner(config, rates)
        self._ranks = Ranks(process_group, model, config)
        self._meter: OverheadMeter | None = None
        self._zeroed: dict[Tensor, tuple[int, int]] = {}
        self._memory = Memory.empty()
        self._known_members: Members | None = None
        self._phases: tuple[list[Layer], list[Config], list[int]] = ([], [], [])
        self._guard = StepGuard()
        self._captured = False
        self._shards: Shards | None = None
        self._exchange = MomentExchange()
        self._identifier = Identifier()
        register_shards(model)
        attached = attach_layers(model, exclude)
        try:
            self._inventory = take_inventory(model, exclude)
            self._require_layers()
            super().__init__(list(model.parameters()) if params is None else params, defaults)
            self._require_own()
            self._find_shards()
        except Exception:
            for module in attached:
                detach_layer(module)
            raise

    def _require_layers(self) -> None:
        if not self._inventory.layers:
            reasons = "\n".join(f"  {self._row(parameter)}" for parameter in self._inventory.names)
            raise ValueError(
                f"model={type(self._model).__name__} has no layer that LNB can claim ({claimed_names()} "
                f"that owns its weights); use another optimizer for it, or see why:\n"
                f"{reasons or '  it has no parameters'}"
            )

    def _require_own(self) -> None:
        given = [parameter for group in self.param_groups for parameter in group["params"]]
        if not any(parameter in self._inventory.names for parameter in given):
            raise ValueError(
                f"params: none of the {len(given)} given is a parameter of model={type(self._model).__name__}; a copied, "
                f"loaded or compiled model has its own: take them from the same model"
            )

    def _find_shards(self) -> None:
        """Work on the shards of parameters that are sharded."""
        model, given, exchange = self._model, self._ranks.given, self._exchange
        groups, shards = self.param_groups, shards_class(self.param_groups)
        self._shards = (
            None
            if shards is None
            else shards(model, self._inventory, groups, self.state, self._config, given, exchange)
        )
        self._memory = Memory.empty(None if self._shards is None else self._shards.stages)
        self._turned = Turned(self._inventory.layers, self._inventory.names)
        if self._shards is not None:
            self._switch_captures(self._optimized_layers())

    @property
    def config(self) -> Config:
        """The settings in force, read-only."""
        return self._config

    @property
    def strict(self) -> bool:
        """Whether NaN or inf raises, for which every step waits for the device."""
        return self._strict

    # -- CUDA graphs --------------------------------------------------------------------------------------------------

    @property
    def step_index(self) -> int:
        """The number of steps made, from which the host knows what the next one refreshes."""
        return self._step_index

    @property
    def gathering(self) -> tuple[int, ...]:
        """The layers, by number, whose second moments the next backward pass gathers."""
        layers = self._optimized_layers()
        return tuple(i for i, layer in enumerate(layers) if any(capture.moments_on for capture in layer.captures))

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Inside, a CUDA graph may capture steps, which :func:`lnb.graphed_step` replays where the schedule calls for them."""
        self._captured = True
        try:
            yield
        finally:
            self._captured = False

    def count_step(self) -> None:
        """Count a step that a replayed CUDA graph makes (:func:`lnb.graphed_step`), and choose what the next one gathers."""
        self._step_index += 1
        self._counters["steps"] = self._counters["steps"] + 1
        self._switch_captures(self._optimized_layers())

    # -- parameter groups ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own ``lr``, ``weight_decay`` or ``ridge``. Nothing is added if a value is wrong.

        Keys that mean nothing to LNB (``betas``, ``name``, ``lr_scale``, ...) are kept and saved: a group may have been
        written for another optimizer, or be read by a scheduler. timm's schedulers multiply ``lr`` by ``lr_scale``; LNB itself
        does not, as timm's own optimizers do not. ``maximize``, ``differentiable`` and ``capturable`` must not be set.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group={param_group!r} must be a dict, not {type(param_group).__name__}")
        check_keys(param_group, self._config)
        if "params" not in param_group:
            raise ValueError(f"param_group with keys {sorted(param_group)} must have 'params': what to optimize")
        check_group({**self.defaults, **param_group})
        before = len(self.param_groups)
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault(PROGRESS, "{}")
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                del self.param_groups[before:]
                raise TypeError(
                    f"params: a parameter is {parameter.dtype}; only real floating-point ones can be optimized"
                )
        try:
            self._planner.fit_memory(self._optimized_layers(), self._other_bytes)
        except ValueError:
            del self.param_groups[before:]
            raise
        if self._shards is not None:
            self._find_shards()
        self._switch_captures(self._optimized_layers())

    # -- the step -----------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None, *, loss: float | Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_disable_dynamo  # it looks through the state of hundreds of layers, and its kernels are compiled already
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, loss: float | Tensor | None = None) -> float | None:
        """Make one step. In code under ``torch.compile`` it runs as it is, between two graphs; with ``fullgraph=True`` that
        is PyTorch's error. What the closure calls is compiled as usual.

        Args:
            closure: reevaluates the model and returns the loss (it calls ``zero_grad`` and ``backward`` itself). The loss is
                returned and not read, so that loops with and without a closure take the same steps.
            loss: of the batch that the gradients are of, one real number, on any device; its unscaled mean where a gradient
                scaler is used. It is optional, and a net below the damping by gradients: where it rises beyond its noise, steps
                are shortened (:mod:`lnb.loss_rise`). NaN and inf are treated as in a gradient: the step is skipped.

        Returns:
            The closure's loss.

        Raises:
            TypeError, ValueError: ``loss`` is not one real number, or is given with a closure, or by one of several ranks, whose
                losses differ; nothing was changed.
            RuntimeError: a claimed layer has a gradient but its input was not seen, or an exception broke off the step before and
                these are still its gradients, or it cannot be known which ranks train the model, or these differ, or a CUDA graph
                is captured without :func:`lnb.graphed_step`; nothing was changed.
            KeyboardInterrupt: after Ctrl-C. The step is complete (``diagnostics()["steps"]`` has counted it, and to call
                ``step()`` again with the same gradients does nothing) or, where it had not begun to write, not made at all.
            FloatingPointError: NaN or inf was met and ``strict`` is set; nothing was changed.

        Any other exception (no memory left, a second Ctrl-C) leaves a state that can be saved and loaded. Averages may have
        this step's gradients in them then, and if it came while parameters were written, some of them have moved. What a
        closure raises comes before all that.
        """
        if is_capturing() and not self._captured:
            raise RuntimeError(
                "step(): a CUDA graph is being captured. Replayed, this step would never refresh the second moments, whose "
                "schedule is on the host: let lnb.graphed_step(optimizer, loss, example) capture whole training steps. Nothing "
                "was changed"
            )
        if loss is not None and closure is not None:
            raise ValueError("step(): pass a closure or loss, not both. Nothing was changed")
        level = None if loss is None else as_loss(loss, self._device)
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
        join_moments()
        if self._shards is not None:
            self._shards.register()
        if self._step_index == 0:
            register_shards(self._model)
            for layer in self._optimized_layers():
                replaced = layer.replacement(self._model)
                if replaced is not None:  # more to the point than that parameters are others
                    raise RuntimeError(
                        f"step(): {replaced} since LNB attached to it; make a new LNB. Nothing was changed"
                    )
            if adopt_shards(self._model, self._inventory.names, self.param_groups):
                former = self._inventory.layers
                self._inventory = take_inventory(self._model, self._exclude)
                release(former, self._inventory.layers)
                self._require_layers()
                self._find_shards()
            if asks_for_state(self.param_groups, self.state, self._optimized_layers()):
                self._make_state()
                return returned
        shards = self._shards
        joint: Shards | Joint | None = self._ranks.joint(self._model, self._exchange) if shards is None else shards
        try:
            if self._guard.repeats():
                return returned
            if self._step_index == 0:
                self.state.clear()  # it held the place of what this step makes
            for group in self.param_groups:
                check_group(group)
                check_switches(group)
            meter = self._started_meter()
            layers = self._optimized_layers()
            if joint is not None:
                if level is not None:
                    raise ValueError(
                        "step(): loss is for one process; the ranks that train this model have different losses, and would "
                        "take different steps. Leave it out: LNB does not need it. Nothing was changed"
                    )
                self._exchange.require_kept()
                self._exchange.fill_missing(layers)
            dual = all(group["ridge"] > 0 for group in self.param_groups)
            self._planner.observe(layers, self._other_bytes, dual)
            context = self._collect()
        except Exception:
            if joint is not None:
                self._leave_step(joint)
            raise
        if joint is not None:
            flag = joint.add(layers, self._device, self._identity())
            context = self._collect()
            context.flags.append(flag)
            context.sharers = joint.sharers
        follow_parameters(self.state)
        rejected, parameters = False, context.parameters
        names = self._inventory.names
        if shards is not None:
            context, names = shards.on_shards(context), shards.names
        elif self._turned:
            context, names = self._turned.with_stand_ins(context), self._turned.names
        if parameters:
            if level is not None:
                context.flags.append(level)
            verdict = check_finite(context, wait=self._strict or (shards is not None and shards.waits))
            rejected = verdict.rejected
        with self._guard.writing(parameters):
            if parameters:
                if not rejected:
                    if level is not None:
                        shorten_where_risen(context.layers, level, verdict, self._memory.arenas)
                    for outcome in self._run(context, verdict):
                        self._records.record(self._step_index, outcome, names, verdict)
                self._step_index += 1
            self._clear_captures(layers)
            self._switch_captures(layers)
            if joint is not None:
                self._promise(joint)
            if meter is not None:
                meter.leave(any(each.moments is not None for each in context.layers))
            if parameters:
                self._count(verdict)
        if rejected and self._strict:
            raise FloatingPointError(
                "step(): NaN or inf in a gradient, in the input of a claimed layer or in loss, or another rank could not make "
                "this step; parameters and state are unchanged. Lower lr, clip the gradients, or drop strict=True to skip "
                "such steps"
            )
        return returned

    def _make_state(self) -> None:
        """Make the state that a first step makes, without a step: for checkpoints that are loaded into it."""
        layers = self._optimized_layers()
        make_up_inputs(layers)
        context = self._collect()
        verdict = Verdict(torch.ones((), dtype=torch.bool))
        if self._shards is None:
            self._run(self._turned.with_stand_ins(context) if self._turned else context, verdict)
        else:
            with self._shards.apart():
                self._run(self._shards.on_shards(context), verdict)
        self._clear_captures(self._optimized_layers())
        self._switch_captures(self._optimized_layers())

    def _collect(self) -> StepContext:
        return collect(self._model, self._members(), self._config_of, self.state, self._zeroed)

    def _leave_step(self, joint: Shards | Joint) -> None:
        """Take part in the exchange of a step that this rank cannot make: so no rank makes it, and all stay in step."""
        seen_by_host = self._strict or self._device.type == "cpu" or (self._shards is not None and self._shards.waits)
        joint.leave(self._optimized_layers(), self._device, self._identity(), seen_by_host)
        self._step_index += 1
        for name in self._counters:
            self._counters[name] = self._counters[name] + 1
        self._clear_captures(self._optimized_layers())
        self._switch_captures(self._optimized_layers())
        self._promise(joint)

    def _promise(self, joint: Shards | Joint) -> None:
        """Fix what this rank exchanges at its next step."""
        layers = self._optimized_layers()
        self._exchange.promise(layers, self._step_index)
        joint.follow(layers)

    def _identity(self) -> Identity:
        return self._identifier.of(self._config, self.param_groups, self._inventory.names, self._step_index)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.param_groups[0]["params"][0].device
        return device

    def _run(self, context: StepContext, verdict: Verdict) -> list[Outcome]:
        """The update. If it is interrupted, no parameter is left with a part of the state that its first step makes."""
        fresh = [parameter for parameter in context.parameters if not context.states.get(parameter)]
        try:
            made = make_step(context, verdict, self._config, self._memory)
            self._turned.finish()
            if self._shards is not None:
                self._shards.mark(self.state)
            return made
        except BaseException:
            for parameter in fresh:
                context.states.pop(parameter, None)
            raise

    def _started_meter(self) -> OverheadMeter | None:
        """The clock, running; None where no overhead is watched."""
        if self._config.max_overhead is None:
            return None
        if self._meter is None:
            self._meter = OverheadMeter(self._device)
        self._meter.enter()
        return self._meter

    def _config_of(self, layer: Layer) -> Config:
        return self._planner.choice(layer).config

    def _count(self, verdict: Verdict) -> None:
        self._counters["steps"] = self._counters["steps"] + 1
        found, before = verdict.rejections(), self._counters["skipped_steps"]
        if not isinstance(found, Tensor):
            self._counters["skipped_steps"] = before + found
        elif isinstance(before, Tensor):
            before.add_(found)  # in place: a captured CUDA graph counts on
        else:
            self._counters["skipped_steps"] = found.long() + before

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and forget what was gathered with them."""
        super().zero_grad(set_to_none)
        self._guard.forget()
        self._exchange.forget()
        layers = self._optimized_layers()
        self._zeroed = {}
        if not set_to_none:
            marks = {layer.weight: mark_zeroed(layer.weight) for layer in layers}
            self._zeroed = {weight: mark for weight, mark in marks.items() if mark is not None}
        self._clear_captures(layers)

    def _clear_captures(self, layers: list[Layer]) -> None:
        for layer in layers:
            for capture in self._exchange.captures_of(layer):
                capture.clear()

    def _members(self) -> Members:
        """The parameters that the groups hold now."""
        found = self._known_members
        if found is None or not found.hold(self._inventory.layers, self.param_groups):
            found = self._known_members = Members(self._inventory.layers, self.param_groups)
        return found

    def _optimized_layers(self) -> list[Layer]:
        """The claimed layers whose weight is in a parameter group."""
        return self._members().layers

    def _other_bytes(self) -> int:
        """State of the parameters of no layer."""
        claimed = {parameter for layer in self._optimized_layers() for parameter in layer.parameters}
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        return sum(other_bytes(p, self._config) for p in parameters if p not in claimed and p.requires_grad)

    def _switch_captures(self, layers: list[Layer]) -> None:
        """Have every layer gather what its next step needs, or the present one if its backward passes have begun."""
        configs = [self._config_of(layer) for layer in layers]
        for layer, config, phase in zip(layers, configs, self._refresh_phases(layers, configs), strict=True):
            captures = self._exchange.captures_of(layer)
            if any(capture.gathered for capture in captures):
                continue
            due = is_refresh_step(self._step_index, config.refresh_every, phase) or self._planner.is_open(layer)
            due = due or not has_statistics(self.state.get(layer.weight), layer, config)
            counts = self._planner.waits_for_samples(layer)
            if not (due or counts or config.keeps_inputs) and all(capture.rests for capture in captures):
                continue  # the usual case between two refreshes
            moments, channels, inputs = config.needs(due)
            cut = moment_blocks(layer, config)
            for capture in captures:
                capture.count_samples(counts)
                capture.switch(layer.weight, moments=moments, channels=channels, inputs=inputs, blocks=cut)
                if moments:
                    capture.read(layer.weight, sample_start(self._step_index), config.sample_every, config.moment_dtype)

    def _refresh_phases(self, layers: list[Layer], configs: list[Config]) -> list[int]:
        """The phase of each layer's refreshes; found once for the same layers and settings."""
        former_layers, former_configs, phases = self._phases
        if not (_are_same(layers, former_layers) and _are_same(configs, former_configs)):
            phases = refresh_phases(list(zip(layers, configs, strict=True)))
            self._phases = layers, configs, phases
        return phases

    # -- reports ------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model that it was attached to."""
        return self._model

    def tracked(self) -> list[Tracked]:
        """The claimed layers that it optimizes with their second moments, for :func:`lnb.export_moments`."""
        found = []
        for layer in self._optimized_layers():
            config, samples = self._config_of(layer), self._planner.samples.get(layer.name)
            read = None if samples is None else samples.count / config.sample_every
            found.append(Tracked(layer, config.b_s, read, self.state.get(layer.weight, {})))
        return found

    def coverage(self) -> Coverage:
        """Which metric every parameter gets, and why: the model's parameters, then any other that was added."""
        known = list(self._inventory.names)
        added = [p for group in self.param_groups for p in group["params"] if p not in self._inventory.names]
        return Coverage(tuple(self._row(parameter) for parameter in known + added))

    def _row(self, parameter: nn.Parameter) -> CoverageRow:
        name = self._inventory.names.get(parameter, "(added)")
        metric, reason = self._metric(parameter)
        lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
        return CoverageRow(name, None if lazy else tuple(parameter.shape), metric, reason)

    def _metric(self, parameter: nn.Parameter) -> tuple[str, str]:
        optimized = {p for group in getattr(self, "param_groups", ()) for p in group["params"]}
        if optimized and parameter not in optimized:
            return "none", "in no parameter group: not optimized"
        if not parameter.requires_grad:
            return "none", "frozen (requires_grad is False)"
        for layer in self._inventory.layers:
            if parameter is layer.weight or parameter is layer.bias:
                kind = layer.kind
                if parameter is layer.bias and not (layer.weight.requires_grad and layer.weight in optimized):
                    return self._config.others, f"bias of {kind} {layer.name!r} whose weight does not move"
                return "second moment", f"{kind} {layer.name!r}: {layer.describe()}"
        return self._config.others, self._inventory.reasons.get(parameter, "not a parameter of the attached model")

    def plan(self, rates: Rates | None = None) -> Plan:
        """What a step does for every claimed layer, why, and what it costs; print it, or read its rows.

        Times are predicted from the samples of the first step, and missing before it.

        Args:
            rates: of the device; None for those given to the optimizer, else measured ones.
        """
        if rates is not None and not isinstance(rates, Rates):
            raise TypeError(f"rates={rates!r} must be a lnb.planning.Rates, not {type(rates).__name__}")
        layers, samples = self._optimized_layers(), self._planner.samples
        found = self._planner.rates([layer for layer in layers if layer.name in samples], rates)
        planned = [
            plan_layer(layer, self._planner.choice(layer), samples.get(layer.name), found.get(layer.weight.device))
            for layer in layers
        ]
        sources = dict.fromkeys(rates.source for rates in found.values())
        return Plan(tuple(planned), self._other_bytes(), ", ".join(sources))

    def diagnostics(self, layers: bool = False, inputs: bool = False) -> dict[str, float]:
        """Figures to log, for example with ``SummaryWriter.add_scalar(name, value, step)`` each. Waits for the device.

        Args:
            layers: add the last step's figures of every layer, as ``layer/<name>/<figure>``: ``gain`` ``<h, g~>``;
                ``step_norm``, its root, the size of the direction in the metric; ``residual`` of the conjugate gradients;
                ``condition``, a lower bound of the condition number of the cached factor's matrix; ``refresh_age`` in steps.
            inputs: add what every layer's averaged second moment says of its inputs: ``inputs``, how many a neuron has (of all
                groups); ``input_rank``, ``input_condition`` and ``dead_inputs`` (:mod:`lnb.reports.input_figures`). That takes
                the eigenvalues of every block, on the CPU: about 1 ms for one of 144 inputs.

        Returns:
            Counters since construction: ``steps``, and ``skipped_steps`` that met NaN or inf; ``stood_still/<name>`` of each
            layer or other parameter that some steps left where it was (but for weight decay), because its direction
            was not finite though all gradients were. With ``max_overhead``, and
            from the second step on, ``overhead``: the time measured in ``step()``, plus what gathering statistics adds to
            the passes before it, relative to the rest of a training step, over the last 200 steps. It includes averaging
            gradients and moving parameters, as every optimizer does, which ``max_overhead`` is not about. Then the
            layers' figures.
        """
        found: dict[str, float] = {name: int(value) for name, value in self._counters.items()}
        found |= {f"stood_still/{name}": steps for name, steps in self._records.stood_still().items()}
        overhead = None if self._meter is None else self._meter.read()
        if overhead is not None:
            found["overhead"] = overhead
        if layers:
            states = {owner.name: self.state.get(owner.weight, {}) for owner in self._inventory.layers}
            factors = {name: state["factor"] for name, state in states.items() if "factor" in state}
            found |= self._records.read(self._step_index, factors)
        for layer in self.tracked() if inputs else ():
            found |= figures_of_inputs(layer)
        return found

    # -- saving and copying -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict, with ``lnb_format``. Averages of gradients are shared with the optimizer, as torch does; what
        the optimizer keeps for many layers in one tensor is copied.

        What stands beside ``state`` and ``param_groups`` is in every group too, for ``torch.distributed.checkpoint``.
        """
        own = {"lnb_format": FORMAT, "lnb_step": self._step_index, "lnb_settings": saved_settings(self._config)}
        own["lnb_plan"] = self._planner.state_dict()
        write_progress(self.param_groups, own)
        found = super().state_dict()
        if self._shards is None:
            found["state"] = {number: compact(state) for number, state in found["state"].items()}
        else:
            found["state"] = self._shards.exported(found["state"])
        return {**found, **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, bit for bit. Settings other than the groups' stay as constructed;
        what a budget or ``solver="auto"`` chose for single layers is restored.

        Raises:
            TypeError: it is not such a dict.
            ValueError: it belongs to another model or another kind of metric, and nothing was changed.
        """
        if isinstance(state_dict, dict):
            state_dict = state_dict.copy()  # hooks may write to it
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        state_dict = with_progress(state_dict)
        shards = self._shards
        if shards is not None and fits_groups(state_dict, self.param_groups):
            local = shards.imported(state_dict)
            restored = self._planner.restored
            planner = check_state(local.state_dict, local.param_groups, local.inventory, self._config, restored)
            state = shards.merged(restored_state(local.state_dict, local.param_groups), local)
        else:
            restarted: list[nn.Parameter] = []
            if fits_groups(state_dict, self.param_groups):
                block_size = self._config.block_size
                state_dict, restarted = of_whole(state_dict, self.param_groups, self._inventory, block_size)
            planner = check_state(state_dict, self.param_groups, self._inventory, self._config, self._planner.restored)
            state = restored_state(state_dict, self.param_groups)
            for parameter in restarted:
                restart(state[parameter])
        self.__setstate__(
            {
                "state": state,
                "param_groups": restored_groups(state_dict, self.param_groups),
            }
        )
        self._step_index = state_dict["lnb_step"]
        self._planner = planner
        self._clear_captures(self._optimized_layers())
        self._switch_captures(self._optimized_layers())
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        own = (
            "_model",
            "_config",
            "_strict",
            "_counters",
            "_inventory",
            "_step_index",
            "_records",
            "_planner",
            "_ranks",
            "_exclude",
        )
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._zeroed = {}
        self._meter = None
        self._exchange = self.__dict__.get("_exchange") or MomentExchange()
        self._identifier = self.__dict__.get("_identifier") or Identifier()
        self._known_members = None
        self._phases = ([], [], [])
        self._guard = StepGuard()
        self._captured = False
        self._find_shards()
        self._switch_captures(self._optimized_layers())


def _are_same(these: Sequence[object], those: Sequence[object]) -> bool:
    return len(these) == len(those) and all(map(operator.is_, these, those))
