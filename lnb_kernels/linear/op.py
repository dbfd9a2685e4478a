"""The ops ``lnb_kernels::linear`` and ``linear_backward``: schema, fakes, derivatives and dispatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lnb_kernels import _autocast, _backend, _checks, _sampling, moment_stream
from lnb_kernels._library import below_autograd, define, unobserved
from lnb_kernels._matrix import as_matrix
from lnb_kernels.linear import reference
from lnb_kernels.linear.shared import SharedMoment, gradient_memory
from lnb_kernels.second_moment.op import pull_back, shape_of

_backend.register(
    "linear_backward", reference.linear_backward, triton="lnb_kernels.linear.triton_kernel:linear_backward"
)


def _backward_kernel(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: list[bool],
    start: torch.Tensor | None,
    every: int,
    moment_dtype: torch.dtype | None,
    blocks: int | None,
) -> list[torch.Tensor]:
    plain = start is None and moment_dtype is None and blocks is None
    if mask[3] and not plain:  # S reads other samples than the weight gradient, or multiplies other columns

        def moment() -> torch.Tensor:
            samples, scale = _sampling.read(as_matrix(x), start, every)
            s: torch.Tensor = _autocast.call("second_moment", samples, samples, None, moment_dtype, blocks)
            s = s.to(_checks.accumulation_dtype(x.dtype))
            return s if scale == 1.0 else s.mul_(scale)

        s = moment_stream.computed(moment, x, start)  # first: beside it, another stream makes the gradients
        gradients = _backward_kernel(grad, x, weight, [*mask[:3], False], None, 1, None, None) if any(mask[:3]) else []
        return [*gradients, s]
    if _row_major(x, weight):
        results: list[torch.Tensor] = _autocast.call("linear_backward", x, grad, x, weight, mask)
        return results
    with _autocast.disabled(x.device):
        return reference.linear_backward(grad, x, weight, mask)


def _row_major(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether autograd would return row-major gradients, the only layout that kernels write."""
    return weight.stride() == (weight.shape[1], 1) and (x.dim() != 2 or x.stride() != (1, x.shape[0]))


def _backward_fake(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: list[bool], *options: Any
) -> list[torch.Tensor]:
    *_, blocks = options
    results = reference.linear_backward(grad, x, weight, [*mask[:3], False])
    if mask[3]:
        results.append(x.new_empty(shape_of(x.shape[-1], blocks), dtype=_checks.accumulation_dtype(x.dtype)))
    return results


class _LinearBackward(torch.autograd.Function):
    """Derivative of ``(G W, G'X, sum G, S)``: the second derivative of the layer."""

    @staticmethod
    def forward(*args: Any) -> tuple[torch.Tensor, ...]:
        with below_autograd():
            return tuple(torch.ops.lnb_kernels.linear_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3], inputs[4])
        ctx.mask, ctx.every = inputs[3], inputs[5]

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, x, weight, start = ctx.saved_tensors
        values = iter(upstream)
        g, samples = as_matrix(grad), as_matrix(x)
        for_grad, for_x, for_weight = torch.zeros_like(g), torch.zeros_like(samples), torch.zeros_like(weight)
        if ctx.mask[0]:
            u = next(values).reshape(samples.shape)
            for_grad = for_grad + u @ weight.t()
            for_weight = for_weight + g.t() @ u
        if ctx.mask[1]:
            u = next(values)
            for_grad = for_grad + samples @ u.t()
            for_x = for_x + g @ u
        if ctx.mask[2]:
            for_grad = for_grad + next(values)
        if ctx.mask[3]:
            pulled = pull_back(samples, next(values).to(x.dtype))
            if start is not None and ctx.every > 1:
                sample = _sampling.Sample(start, ctx.every)
                read = samples.new_zeros(samples.shape[0], 1)
                read[sample.indices(samples.shape[0])] = sample.scale(samples.shape[0])
                pulled = pulled * read
            for_x = for_x + pulled
        return for_grad.reshape(grad.shape), for_x.reshape(x.shape), for_weight, *[None] * 5


_linear_backward = define(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, bool[] mask, Tensor? start, SymInt every, "
    "ScalarType? moment_dtype, SymInt? blocks) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
    _LinearBackward,
)


class _Linear(torch.autograd.Function):
    """``(G W, G'X, sum G)`` and, for the probe, ``S`` by definition: it does not depend on ``G``."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *_: Any) -> torch.Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2], inputs[4])
        ctx.every, ctx.moment_dtype = inputs[5:]
        ctx.blocks = inputs[3].shape[0] if inputs[3].dim() == 3 else None
        ctx.use = moment_stream.use_of(inputs[3])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, start = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:4])
        with moment_stream.backward_of(ctx.use):
            found = _linear_backward(grad, x, weight, mask, start, ctx.every, ctx.moment_dtype, ctx.blocks)
        results = iter(found)
        return (*(next(results) if wanted else None for wanted in mask), None, None, None)


_linear = define(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor probe, Tensor? start, SymInt every, "
    "ScalarType? moment_dtype) -> Tensor",
    _Linear.forward,
    _Linear.forward,
    _Linear,
)


class _SharedLinear(torch.autograd.Function):
    """:class:`_Linear` of a layer whose input other layers are given, too. Python objects do not pass through the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        ctx.shared = inputs[7]
        ctx.member = ctx.shared.join()
        ctx.memory = gradient_memory(inputs[3])
        _Linear.setup_context(ctx, inputs[:7], None)
        return F.linear(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        alone = torch.is_grad_enabled()  # the moment has a derivative then, and a graph of its own
        moment = None if alone else ctx.shared.take(ctx.member)
        x, weight, start = ctx.saved_tensors
        mask = [*ctx.needs_input_grad[:3], moment is None]
        arguments = grad, x, weight, mask, start, ctx.every, ctx.moment_dtype, ctx.blocks
        tensors = (grad, x, weight) if start is None else (grad, x, weight, start)
        direct = not alone and unobserved(tensors)  # nobody sees whether the dispatcher is asked
        with moment_stream.backward_of(ctx.use):
            found = _backward_kernel(*arguments) if direct else _linear_backward(*arguments)
        results = iter(found)
        gradients = [next(results) if wanted else None for wanted in mask[:3]]
        if moment is None:
            moment = next(results)
            if not alone:
                ctx.shared.offer(ctx.member, moment)
        if not alone and ctx.memory is not None:
            moment = ctx.memory.view_of(moment, ctx.shared)
        return (*gradients, moment, *[None] * 4)


_shared_linear: Callable[..., torch.Tensor] = _SharedLinear.apply


def _check_probe(probe: torch.Tensor, d: int) -> None:
    blocks = probe.shape[0] if probe.dim() == 3 else None
    if blocks is not None and blocks > 0 and d % blocks == 0:
        _checks.shape_is("linear", "probe", probe, shape_of(d, blocks), "of blocks of weight [m, d]")
    else:
        _checks.shape_is("linear", "probe", probe, shape_of(d, None), "d+1 of weight [m, d], or that of equal blocks")


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    probe: torch.Tensor | None = None,
    sample: tuple[torch.Tensor, int] | None = None,
    moment_dtype: torch.dtype | None = None,
    shared: SharedMoment | None = None,
) -> torch.Tensor:
    """``F.linear(x, weight, bias)`` whose backward pass gives ``probe`` the second moment of ``x`` as its gradient.

    The probe does not change the output. Its gradient is DEFINED as ``S = [X 1]'[X 1]``
    (:func:`lnb_kernels.second_moment`) of the samples of ``x``, whatever the output's gradient is (so a loss scale does
    not scale it); autograd then adds it over micro-batches and over uses of a shared layer, and computes it once
    under activation checkpointing. Output and the gradients of ``x``, ``weight`` and ``bias`` are those of
    ``F.linear``.

    Args:
        x: ``[..., d]``.
        weight: ``[m, d]``.
        bias: ``[m]`` or None.
        probe: ``[d+1, d+1]``; ``[blocks, d/blocks+1, d/blocks+1]``, whose gradient is the second moment of each of ``blocks``
            blocks of features; or None. None, or a probe that does not require a gradient, is a plain ``F.linear`` call. An
            expanded scalar (all strides 0) takes no memory.
        sample: ``(start, every)``: the second moment is estimated from one of every ``every`` samples, scaled to all of them;
            ``start`` is a tensor ``[]`` on the device of ``x``, and the estimate is unbiased if it is uniform in [0, 1).
            None reads every sample.
        moment_dtype: dtype to which samples are rounded for the second moment, whose sums stay in float32 (float64 for
            float64 ``x``); None keeps that of ``x``.
        shared: the :class:`SharedMoment` of all calls on this ``x``, so that its second moment is computed once; None
            computes it for this call. It is not for compiled code.

    Returns:
        ``[..., m]``.

    Raises:
        TypeError: an argument is no dense floating tensor, ``sample`` no such pair, or ``shared`` no such object.
        ValueError: shapes, dtypes or devices do not fit, or a value is not allowed.
    """
    if not _checks.live_probe("linear", "probe", probe):
        return F.linear(x, weight, bias)
    assert probe is not None
    x, weight = _checks.layer("linear", x, weight, bias, "[m, d]")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x has shape {tuple(x.shape)}; allowed is [..., {weight.shape[1]}], d of weight [m, d]"
        )
    _check_probe(probe, weight.shape[-1])
    _checks.same_device("linear", "probe", probe, "x", x)
    chosen = _sampling.check("linear", sample, x)
    _sampling.check_dtype("linear", moment_dtype)
    if shared is not None and not isinstance(shared, SharedMoment):
        raise TypeError(
            f"linear: shared={shared!r} must be None or a lnb_kernels.linear.SharedMoment, not {type(shared).__name__}"
        )
    x, weight, bias = _autocast.cast_layer(x, weight, bias)
    _checks.same_dtype("linear", x, weight=weight, bias=bias)
    start, every = (None, 1) if chosen is None else chosen
    arguments = x, weight, bias, probe, start, every, moment_dtype
    if shared is None:
        y: torch.Tensor = _linear(*arguments)
        return y
    return _shared_linear(*arguments, shared)
