"""The op ``lnb_kernels::pcg``: schema, fake, derivative and dispatch; and its form for any matvec."""

from __future__ import annotations

from typing import Any

import torch

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels.pcg import checks, reference

SCOPES = ("layer", "neuron")
ROW_COLUMNS = 129  # of g, for the kernel that does all iterations in one launch: 128 features and a bias
VECTOR_COLUMNS = 4096  # of g, for the kernels that do the vectors' part of an iteration
LAYER_ROWS = 2**31 - 32  # of one layer, for both: they count in 32 bits

Equation = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
"""``s, g, h0, mu, var``"""

_NATIVE = "lnb_kernels.pcg.native_kernel"
_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})

_backend.register(
    "pcg",
    reference.pcg_moment,
    triton="lnb_kernels.pcg.triton_kernel:pcg",
    native=f"{_NATIVE}:pcg_moment",
    native_dtypes=_FLOATS,
)
_backend.register(
    "pcg_rows",
    reference.pcg_moment,
    triton="lnb_kernels.pcg.triton_kernel:pcg",
    native=f"{_NATIVE}:pcg_moment",
    native_cuda="lnb_kernels.pcg.cuda_kernel:pcg_rows",
    native_dtypes=_FLOATS,
)
_backend.register(
    "pcg_vectors",
    reference.iterate,
    native=f"{_NATIVE}:iterate",
    native_cuda="lnb_kernels.pcg.cuda_kernel:iterate",
)


def is_small(equation: Equation) -> bool:
    """Whether the kernel that does all iterations in one launch takes it."""
    _, g, *_ = equation
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in equation)
    return g.shape[-1] <= ROW_COLUMNS and g.shape[-2] <= LAYER_ROWS and g.numel() > 0 and not wide


@torch.library.custom_op("lnb_kernels::pcg", mutates_args=())
def _pcg(
    s: torch.Tensor,
    g: torch.Tensor,
    h0: torch.Tensor | None,
    mu: torch.Tensor | None,
    var: torch.Tensor | None,
    iterations: int,
    ridge: float,
    scope: str,
    layer_dims: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    equation = (s, g, h0, mu, var)
    route = "pcg_rows" if scope == "neuron" and is_small(equation) else "pcg"
    h, norms = _autocast.call(route, g, *equation, iterations, ridge, scope, layer_dims)
    return h, norms


@_pcg.register_fake
def _(s: torch.Tensor, g: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *_, iterations, _, scope, layer_dims = rest
    units = g.shape[:-1] if scope == "neuron" else g.shape[: g.dim() - layer_dims]
    norms = g.new_empty((iterations + 1, *units), dtype=_checks.accumulation_dtype(g.dtype))
    return g.new_empty(g.shape), norms


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, grad_h: torch.Tensor, grad_norms: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Differentiate the iteration itself: it is recomputed, so the forward pass keeps nothing but its arguments."""
    wanted = ctx.needs_input_grad[:5]
    with torch.enable_grad():
        inputs = [
            None if saved is None else saved.detach().requires_grad_(wants)
            for saved, wants in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        outputs = reference.pcg_moment(*inputs, *ctx.options)  # type: ignore[arg-type]
        variables = [value for value in inputs if value is not None and value.requires_grad]
        grads = iter(torch.autograd.grad(outputs, variables, (grad_h, grad_norms), allow_unused=True))
    return (*(next(grads) if wants else None for wants in wanted), None, None, None, None)


_pcg.register_autograd(_backward, setup_context=_save)


def pcg(
    matvec_or_s: torch.Tensor | reference.Matvec,
    g: torch.Tensor,
    h0: torch.Tensor | None = None,
    arrow: tuple[torch.Tensor, torch.Tensor] | None = None,
    iterations: int = 2,
    ridge: float = 0.0,
    scope: str = "layer",
    layer_dims: int = 2,
    bias: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve ``A h = g`` approximately by ``iterations`` steps of preconditioned conjugate gradients.

    From ``r = g - A h``, ``z = P r``, ``p = z``, each step does ``alpha = <r, z> / <p, A p>``, ``h += alpha p``,
    ``r -= alpha A p``, ``z = P r``, ``beta = <r, z>_new / <r, z>_old``, ``p = z + beta p``, where ``<.,.>`` sums over
    one scope unit. A unit stops (``alpha = 0``) where ``||r|| <= 1e-5 ||g||`` or ``<p, A p>`` is not positive; this is
    a mask, so no value is read back from the device.

    Cost: ``iterations`` products with ``A`` for ``h0=None``, one more (the first residual) with ``h0``.

    Args:
        matvec_or_s: a second moment ``S`` ``[..., D+1, D+1]`` with the ones column, whose last entry is the number of samples
            ``N``: then ``A = S/N + ridge diag(1..1, 0)`` if ``g`` has ``D+1`` columns, ``S[:D, :D]/N + ridge I`` if
            it has ``D``. Or a callable ``v -> A v`` that maps tensors of ``g``'s shape and includes any ridge.
        g: right-hand sides, one per output row: ``[..., m, D]`` or ``[..., m, D+1]``. Leading dimensions (layers,
            groups) are independent; those of ``S`` broadcast to them.
        h0: where to start, shape of ``g``; None is zero.
        arrow: None (no preconditioner) or ``(mu, var)``, each ``[..., D]``: ``P`` is :func:`lnb_kernels.arrow_solve`.
        iterations: number of steps, >= 0.
        ridge: finite number >= 0; must be 0 with a callable.
        scope: ``"layer"``: one ``alpha`` and ``beta`` per layer; ``"neuron"``: one per row, for which the error in
            ``A``'s norm after k steps is never above that of ``"layer"``.
        layer_dims: how many trailing dimensions of ``g`` form one layer for scope ``"layer"``: 2, or 3 to include a
            dimension of convolution groups.
        bias: whether rows of ``g`` end with a bias entry, for ``arrow`` with a callable; None takes it from the shapes.

    Returns:
        ``(h, residual_norms)``: ``h`` has shape and dtype of ``g``; ``residual_norms`` ``[iterations+1, units...]``
        holds ``||r||`` after 0, 1, ... steps per scope unit, in float32 or wider. The form with ``S`` is
        differentiable in every tensor.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes, devices or options do not fit.
    """
    op = "pcg"
    checks.right_hand_side(op, "g", g)
    if scope not in SCOPES:
        raise ValueError(f"{op}: scope={scope!r} is not allowed; choose 'layer' or 'neuron'")
    checks.iterations(op, iterations)
    if type(layer_dims) is not int or layer_dims not in (2, 3) or layer_dims > g.dim():
        raise ValueError(
            f"{op}: layer_dims={layer_dims!r} is not allowed for g of {g.dim()} dimensions; it must be 2 or 3"
        )
    ridge = _checks.ridge(op, ridge, g, *(t for t in (matvec_or_s,) if isinstance(t, torch.Tensor)))
    checks.start(op, "h0", h0, "g", g)
    if bias is not None and not isinstance(bias, bool):
        raise TypeError(f"{op}: bias must be None, True or False, got {bias!r}")
    checks.pair(op, arrow)
    if isinstance(matvec_or_s, torch.Tensor):
        s = matvec_or_s
        checks.second_moment(op, "S", s, "g", g)
        has_bias = g.shape[-1] == s.shape[-1]
        if bias is not None and bias != has_bias:
            raise ValueError(
                f"{op}: bias={bias!r} contradicts the shapes: g has {g.shape[-1]} columns, S {s.shape[-1]}"
            )
    elif callable(matvec_or_s):
        if ridge != 0.0:
            raise ValueError(f"{op}: ridge={ridge!r} is not allowed with a callable, which must include it; use 0.0")
        has_bias = bias if bias is not None else arrow is not None and arrow[0].shape[-1:] == (g.shape[-1] - 1,)
    else:
        raise TypeError(f"{op}: matvec_or_s must be a tensor S or a callable, got {type(matvec_or_s).__name__}")
    mu, var = checks.arrow(op, arrow, "g", g, g.shape[-1] - int(has_bias), "features of g")
    if isinstance(matvec_or_s, torch.Tensor):
        h, norms = _pcg(matvec_or_s, g, h0, mu, var, iterations, ridge, scope, layer_dims)
        return h, norms
    matvec = _checked(matvec_or_s, g)
    options = (has_bias, iterations, scope, layer_dims)
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (g, h0, mu, var))
    wide = any(t is not None and t.dtype == torch.float64 for t in (h0, mu, var))
    too_large = g.shape[-1] > VECTOR_COLUMNS or g.shape[-2] > LAYER_ROWS
    wrapped = any(_checks.is_wrapper(type(t)) for t in (g, h0, mu, var))
    if recorded or wide or too_large or wrapped or not g.numel():
        return reference.iterate(matvec, g, h0, mu, var, *options)
    h, norms = _backend.call("pcg_vectors", g, matvec, g, h0, mu, var, *options)
    return h, norms


def _checked(matvec: reference.Matvec, g: torch.Tensor) -> reference.Matvec:
    """``matvec``, whose results are looked at: kernels take them by their address."""
    what = "what matvec_or_s returns"

    def checked(v: torch.Tensor) -> torch.Tensor:
        product = _checks.floating_tensor("pcg", what, matvec(v))
        _checks.shape_is("pcg", what, product, g.shape, "the shape of its argument")
        _checks.same_device("pcg", what, product, "g", g)
        if _checks.is_wrapper(type(product)) and not _checks.is_wrapper(type(g)):
            raise TypeError(f"pcg: {what} is a {type(product).__name__}; allowed is a plain tensor, as g is")
        return product

    return checked
