"""The settings of :class:`lnb.LNB`: one frozen record, its presets, and the check of every value."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lnb import solvers
from lnb.solvers import Solver, solver_named
from lnb.trust_regions import TrustRegion, names, region_named
from lnb_kernels.fused_step import PRECISIONS

FORMER_TWO_SIDED = "balanced"
"""What the trust region ``"two_sided"`` was called before version 0.2."""
CG_SCOPES = ("layer", "neuron")
RIDGE_MODES = ("absolute", "relative")
OTHERS = ("identity", "adamw")
DAMPINGS = ("none", "agreement", "gain")
CARRIED = ("lr", "weight_decay", "ridge")
"""The settings that every parameter group carries."""
MOMENT_DTYPES = (None, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Config:
    """Settings that hold for the whole optimizer; ``lr``, ``weight_decay`` and ``ridge`` can differ per group.

    The defaults are the preset ``"paper"``: D. Munoz, "Simple Linear Neuron Boosting", arXiv:2502.01131.

    Attributes:
        momentum: decay of the gradient average ``g~``, in [0, 1).
        b_mu: decay of the average of the feature means, in [0, 1). Features of a convolution are its channels, over all
            pixels of the images; pixels that circular, reflect or replicate padding repeats count too, since neurons see
            them as they see the others, and the zeros of zero padding do not.
        b_nu: decay of the average of the feature mean squares, in [0, 1).
        shrinkage: how far each feature variance moves towards the layer's mean variance, in [0, 1).
        ridge: added to the weights' diagonal of the metric, >= 0.
        cg_iterations: conjugate-gradient iterations per step, >= 1.
        min_norm: least value of the step norm ``z``, > 0.
        weight_decay: decoupled weight decay, >= 0.
        solver: how ``metric h = g~`` is solved, a name that :func:`lnb.solvers.names` has. ``"pcg"``: conjugate gradients on the
            second moment. ``"matrix_free"``: the same from the kept inputs. ``"dual"``: exactly, from the kept inputs, in the
            space of samples where these are fewer than inputs. ``"cholesky"``: a cached factor. ``"arrow"``: the
            preconditioner alone. ``"auto"``: cholesky where second moments are remembered or the trust region needs a
            factor, else for each layer the cheapest of pcg, matrix_free, and the exact cholesky and dual, once the samples
            of its first step are known.
        cg_scope: which neurons share one CG step length: those of a ``"layer"``; or every ``"neuron"`` (a row of the weight) has
            its own.
        trust_region: what bounds the length of a step, a name that :func:`lnb.trust_regions.names` has. ``"global"``: the root
            mean square change of all layers' outputs together is ``lr``. ``"layer"``: that of each layer. ``"neuron"``: that of
            each neuron. ``"two_sided"``: that of each neuron, and neurons move independently of each other
            (:mod:`lnb.trust_regions.two_sided`). ``"spectral"``: the change of outputs is orthogonalised anew in every step.
            ``"rms"``: steps as large as AdamW's.
        refresh_every: the second moment is gathered on every ``refresh_every``-th step, and before the first of them on
            steps 1, 2, 4, 8, ... too, >= 1.
        staggered: spread the refreshes of the layers over the steps between two of one layer, after the first
            ``refresh_every`` steps, in slices large enough to be worth their fixed costs: small models have one slice.
        split_refresh: where several ranks have whole copies of the model, each makes the factors of some of the layers, and
            all get the results (:mod:`lnb.statistics.split_refresh`).
        b_s: decay of the average of the second moment, in [0, 1).
        ridge_mode: ``"absolute"``, or ``"relative"`` to the mean diagonal of the second moment.
        sample_ridge: what is added to a relative ridge, times a block's inputs per sample that its averaged second moment
            counts, >= 0.
        data_ridge: what is added to the relative ridge of a layer that sees data, to which no gradient goes: times its inputs
            per sample of the batch, >= 0. Together with ``sample_ridge``, at most 2 is added.
        output_ridge: added to the diagonal of the second moment of the neurons' gradients where the trust region is
            ``"two_sided"``, relative to the mean diagonal of each block, >= 0.
        max_relative_change: the longest step of a layer's weights relative to their norm, per unit of ``lr``, > 0; None
            for no bound (see :mod:`lnb.weight_bound`).
        damping: what shortens steps inside the region. ``"none"``; ``"agreement"``: the gradients of a neuron do not agree
            with each other; ``"gain"``: the layer's last step gained less than its gradient promised (see
            :mod:`lnb.damping`).
        b_rows: decay of the neurons' mean squares by which agreement is judged, in [0, 1).
        others: the rule for parameters of no claimed layer, ``"identity"`` or ``"adamw"``.
        nesterov: look one step ahead in the gradient average, as Nesterov's momentum does.
        block_size: inputs of one diagonal block of the metric where the solver is ``"cholesky"``, and neurons of one block
            where the trust region is ``"two_sided"``; None for one block. Wider layers are cut into the fewest equal
            blocks, convolutions between channels, or between the rows of a kernel that is larger; only these blocks of the
            second moment are formed. Where no divisor of the width is near (down to a quarter), blocks are up to four times
            as large, or else much smaller. The mean of the inputs stays exact.
        others_lr: what ``lr`` is multiplied by for ``others="adamw"``.
        b_others: decay of the mean square of the gradient for ``others="adamw"``, in [0, 1).
        sample_every: second moments are estimated, without bias, from one of every ``sample_every`` samples
            (convolution: images); which ones changes from refresh to refresh. >= 1.
        moment_dtype: dtype to which activations are rounded for second-moment products, None (their own), float32 or
            bfloat16; sums are in float32 (float64 for float64 activations). With bfloat16, conjugate gradients of large
            layers on CPUs that multiply it faster also round their operands, the covariance and the directions.
        master_weights: keep a float32 copy of every bfloat16 or float16 parameter, which takes the steps; the parameter is
            its rounding. Steps smaller than the parameter's precision then add up.
        products: how NVIDIA GPUs multiply in the fused step of the default preset: ``"tf32"`` and ``"bf16"`` round the operands,
            and directions are kept in bfloat16; with ``"tf32x3"`` products are as exact as in float32, and directions are
            float32. Other steps and devices multiply as PyTorch does.
        max_overhead: the most time that statistics, solutions and trust regions may take, as a fraction of that of the
            layers' forward and backward passes, > 0; None for no limit. Where the settings are predicted to take more, layers
            get smaller blocks, refresh less often, or read fewer samples; see :meth:`lnb.LNB.plan`.
        max_state_bytes: the most bytes that the optimizer's state may take, >= 1; None for no limit. Where the settings
            take more, layers get smaller blocks, remember no second moment, or are preconditioned by the arrow alone.
    """

    momentum: float = 0.9
    b_mu: float = 0.9
    b_nu: float = 0.999
    shrinkage: float = 0.1
    ridge: float = 0.1
    cg_iterations: int = 2
    min_norm: float = 1e-2
    weight_decay: float = 1e-4
    solver: str = "pcg"
    cg_scope: str = "layer"
    trust_region: str = "global"
    refresh_every: int = 1
    staggered: bool = False
    split_refresh: bool = False
    b_s: float = 0.0
    ridge_mode: str = "absolute"
    sample_ridge: float = 0.0
    data_ridge: float = 0.0
    output_ridge: float = 0.0
    max_relative_change: float | None = None
    damping: str = "none"
    b_rows: float = 0.95
    others: str = "identity"
    nesterov: bool = False
    block_size: int | None = None
    others_lr: float = 1.0
    b_others: float = 0.99
    sample_every: int = 1
    moment_dtype: torch.dtype | None = None
    master_weights: bool = False
    products: str = "tf32"
    max_overhead: float | None = None
    max_state_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("momentum", "b_mu", "b_nu", "shrinkage", "b_s", "b_others", "b_rows"):
            check_number(name, getattr(self, name), low=0.0, high=1.0)
        for name in ("ridge", "weight_decay", "others_lr", "sample_ridge", "data_ridge", "output_ridge"):
            check_number(name, getattr(self, name), low=0.0)
        check_number("min_norm", self.min_norm, low=0.0, low_allowed=False)
        if self.max_relative_change is not None:
            check_number("max_relative_change", self.max_relative_change, low=0.0, low_allowed=False)
        for name in ("cg_iterations", "refresh_every", "sample_every"):
            check_count(name, getattr(self, name))
        check_choice("solver", self.solver, solvers.names())
        check_choice("cg_scope", self.cg_scope, CG_SCOPES)
        check_choice("trust_region", self.trust_region, names())
        check_choice("ridge_mode", self.ridge_mode, RIDGE_MODES)
        check_choice("others", self.others, OTHERS)
        check_choice("damping", self.damping, DAMPINGS)
        check_choice("products", self.products, PRECISIONS)
        if self.damping == "gain" and not self.region.scales_whole_steps:
            allowed = " or ".join(repr(name) for name in names() if region_named(name).scales_whole_steps)
            raise ValueError(
                f"damping='gain' shortens whole steps: trust_region={self.trust_region!r} must be {allowed}"
            )
        if self.block_size is not None:
            check_count("block_size", self.block_size)
        if self.max_overhead is not None:
            check_number("max_overhead", self.max_overhead, low=0.0, low_allowed=False)
            if self.keeps_inputs:
                raise ValueError(
                    f"max_overhead={self.max_overhead!r} has nothing to choose with solver={self.solver!r}, which uses every "
                    f"step's inputs: drop it, or use another solver"
                )
        if self.max_state_bytes is not None:
            check_count("max_state_bytes", self.max_state_bytes)
        for name in ("nesterov", "master_weights", "staggered", "split_refresh"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False")
        if self.region.needs_factor and not self.factored:
            raise ValueError(
                f"trust_region={self.trust_region!r} needs a factor of the metric: solver={self.solver!r} must be 'cholesky' "
                f"or 'auto'"
            )
        self.method.check(self)
        if self.keeps_inputs and (self.averaged or self.ridge_mode == "relative"):
            raise ValueError(
                f"solver={self.solver!r} keeps no second moment: refresh_every must be 1, b_s 0 and ridge_mode 'absolute', not "
                f"{self.refresh_every}, {self.b_s} and {self.ridge_mode!r}"
            )
        if self.moment_dtype not in MOMENT_DTYPES:
            raise ValueError(f"moment_dtype={self.moment_dtype!r} must be None, torch.float32 or torch.bfloat16")

    @property
    def region(self) -> TrustRegion:
        """The trust region that ``trust_region`` names."""
        return region_named(self.trust_region)

    @property
    def method(self) -> Solver:
        """The solver that ``solver`` names; for ``"auto"``, the one it stands for until a layer is decided on."""
        return solver_named(self.solver).acting(self)

    @functools.cached_property  # asked for every layer in every step
    def factored(self) -> bool:
        """Whether the metric is kept as a factor, and not solved by iteration."""
        return self.method.factored

    @property
    def undecided(self) -> bool:
        """Whether the solver is chosen for each layer, once the samples of its first step are known."""
        return solver_named(self.solver).chooses and not self.factored

    @functools.cached_property
    def keeps_inputs(self) -> bool:
        """Whether the solver works on the inputs of the step's forward passes."""
        return self.method.keeps_inputs

    @property
    def averaged(self) -> bool:
        """Whether second moments are remembered from step to step."""
        return self.refresh_every > 1 or self.b_s > 0

    @functools.cached_property
    def keeps_second_moment(self) -> bool:
        """Whether the state holds the averaged second moment."""
        if self.factored:
            return self.b_s > 0
        return self.method.averages_moments and self.averaged

    @property
    def overwrites_average(self) -> bool:
        """Whether the direction takes the place of the averaged gradient in memory."""
        return self.region.two_sided

    @property
    def direction_dtype(self) -> torch.dtype:
        """The dtype of the directions that a GPU's fused step keeps: with 16 bits its state is no larger than AdamW's."""
        return torch.float32 if self.products == "tf32x3" else torch.bfloat16

    @property
    def keeps_direction(self) -> bool:
        """Whether the state holds the previous solution, to start conjugate gradients from."""
        return self.method.keeps_direction

    @functools.cached_property
    def keeps_feature_moments(self) -> bool:
        """Whether the state holds the averages of the features' means and mean squares."""
        return self.method.keeps_feature_moments

    def needs(self, refresh: bool) -> tuple[bool, bool, bool]:
        """What a backward pass must leave: the second moment, the channel moments, the inputs.

        Args:
            refresh: the step gathers statistics.
        """
        if self.keeps_inputs:
            return False, False, True
        return refresh, refresh and self.keeps_feature_moments, False


def resolve_config(preset: str, overrides: dict[str, Any]) -> Config:
    """The preset with the user's overrides.

    Raises:
        ValueError: the preset or a value is not allowed.
        TypeError: an override is not a setting, or a value is of the wrong type.
    """
    check_choice("preset", preset, tuple(PRESETS))
    known = {entry.name for entry in dataclasses.fields(Config)}
    for name in overrides:
        if name not in known:
            raise TypeError(f"LNB has no setting {name!r}; its settings are {', '.join(sorted(known))}")
    if overrides.get("trust_region") == FORMER_TWO_SIDED:
        warnings.warn("trust_region='balanced' is called 'two_sided' now", DeprecationWarning, stacklevel=4)
        overrides = {**overrides, "trust_region": "two_sided"}
    return PRESETS[preset](**overrides)


def current_name(trust_region: Any) -> Any:
    """The present name of a trust region that a state of an earlier version names."""
    return "two_sided" if trust_region == FORMER_TWO_SIDED else trust_region


def check_number(
    name: str, value: Any, *, low: float, low_allowed: bool = True, high: float = math.inf, where: str = ""
) -> None:
    """Require ``low <= value < high`` (``low < value`` unless ``low_allowed``) of a real number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}{name}={value!r} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an int
        number = math.inf if value > 0 else -math.inf
    if not (number >= low if low_allowed else number > low) or not number < high:
        bracket = "[" if low_allowed else "("
        raise ValueError(f"{where}{name}={value!r} must be in {bracket}{low:g}, {high:g})")


def check_count(name: str, value: Any) -> None:
    """Require a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}={value!r} must be at least 1")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Require one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")


def check_group(group: dict[str, Any]) -> None:
    """Check the settings that a parameter group carries: ``lr`` (number or 0-dim tensor), decay and ridge."""
    where = "param group: "
    lr = group["lr"]
    if isinstance(lr, torch.Tensor):
        if lr.dim() != 0 or not lr.is_floating_point():
            raise ValueError(
                f"{where}lr of shape {tuple(lr.shape)}, {lr.dtype} must be a number or a 0-dim float tensor"
            )
    else:
        check_number("lr", lr, low=0.0, where=where)
    check_number("weight_decay", group["weight_decay"], low=0.0, where=where)
    check_number("ridge", group["ridge"], low=0.0, where=where)


PRESETS: dict[str, Callable[..., Config]] = {
    "paper": Config,
    "fast": functools.partial(
        Config,
        momentum=0.9,
        nesterov=True,
        ridge=0.2,
        ridge_mode="relative",
        weight_decay=0.0,
        solver="cholesky",
        trust_region="two_sided",
        refresh_every=10,
        staggered=True,
        b_s=0.9,
        sample_ridge=8.0,
        data_ridge=2.0,
        output_ridge=0.01,
        max_relative_change=2.5,
        damping="agreement",
        block_size=144,
        others="adamw",
        others_lr=0.15,
    ),
    "full_batch": functools.partial(
        Config,
        momentum=0.0,
        ridge=1e-10,
        ridge_mode="relative",
        min_norm=1.0,
        weight_decay=0.0,
        solver="cholesky",
        trust_region="global",
        max_relative_change=0.5,
        damping="gain",
    ),
}
DEFAULT_LR = {"paper": 0.1, "fast": 0.4, "full_batch": 1.0}
"""The learning rate of each preset where none is given."""
