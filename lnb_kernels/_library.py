"""Registration of the ops that run in every layer or on every tensor, with as little Python per call as the dispatcher allows.

``torch.library.custom_op`` costs about 25 microseconds a call, and as much again for its derivative. These ops
register the same things - schema, kernel, fake and derivative - with :class:`torch.library.Library` itself, at a
third of that. Which of the three to choose:

* ``torch.library.custom_op`` for an op that a step calls a few times, or once for all layers. It is PyTorch's own way, in which
  schema and signature are one; begin with it.
* :func:`define` for an op that every layer calls in every forward or backward pass, with a derivative (``lk.linear``,
  ``lk.conv2d``): there 25 microseconds show.
* :func:`define_in_place` for an op on lists of tensors that writes to them and has no derivative: it passes by the dispatcher,
  which would convert every list, wherever nobody watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from lnb_kernels._checks import PLAIN

_PLAIN_ARGUMENTS = PLAIN | {int, float, bool, type(None)}
_LIBRARY = torch.library.Library("lnb_kernels", "FRAGMENT")
_kernels: dict[str, Callable[..., Any]] = {}


def kernel_of(name: str) -> Callable[..., Any]:
    """What the op ``lnb_kernels::<name>`` runs on real tensors: also for tensors whose fake would run otherwise."""
    if name in _kernels:
        return _kernels[name]
    from torch._library.custom_ops import OPDEFS

    kernel: Callable[..., Any] = OPDEFS[f"lnb_kernels::{name}"]._init_fn
    return kernel


def define(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], function: type[torch.autograd.Function]
) -> Callable[..., Any]:
    """Register ``lnb_kernels::<schema>`` and return what calls it.

    Args:
        schema: name and signature, as in ``"linear(Tensor x, Tensor weight) -> Tensor"``.
        kernel: what runs on real tensors, on any device.
        fake: the same on tensors without data.
        function: its derivative, with a separate ``setup_context``, as ``torch.func`` needs it. ``function.forward``
            computes by other ops, or by this one inside :func:`below_autograd`.
    """
    name, overload = _register(schema, kernel, fake)

    class Fused(torch.autograd.Function):
        """``function`` with its context set up inside ``forward``: three times cheaper to call."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = function.forward(*args)
            function.setup_context(ctx, args, output)
            return output

        backward = function.backward

    fused: Callable[..., Any] = Fused.apply

    def differentiable(*args: Any) -> Any:
        if torch.is_grad_enabled():
            return fused(*args)
        with below_autograd():
            return overload(*args)

    _LIBRARY.impl(name, differentiable, "Autograd")

    def call(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return function.apply(*args)
        return overload(*args)

    return call


def define_in_place(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], writes: int
) -> Callable[..., Any]:
    """Register an op on lists of tensors that has no derivative and writes to its first ``writes`` lists, and return its call.

    Written tensors get their version counters bumped, as with every in-place op. On a list of 200 tensors ``custom_op`` costs
    five times as much.

    Args:
        schema, kernel, fake: as for :func:`define`.
        writes: number of lists; their schema says so too.
    """

    def counted(*args: Any) -> Any:
        result = kernel(*args)
        for written in args[:writes]:
            torch.autograd.graph.increment_version(written)
        return result

    name, overload = _register(schema, counted, fake)
    # No stop at autograd on the way: that would turn all lists into Python objects once more.
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    if writes:
        take_negated_views(name)

    def call(*args: Any) -> Any:
        return counted(*args) if unobserved(args) else overload(*args)

    return call


def _register(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    """The name of an op with this kernel and fake, and what calls it through the dispatcher."""
    name = schema.partition("(")[0]
    _kernels[name] = kernel
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lnb_kernels::{name}", fake, lib=_LIBRARY)
    overload: Callable[..., Any] = getattr(torch.ops.lnb_kernels, name).default
    return name, overload


def take_negated_views(name: str) -> None:
    """Let the kernel of an op that writes see negated views, which PyTorch would refuse where they are written."""
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Negative")


def unobserved(args: Iterable[Any]) -> bool:
    """Whether nobody would see a call pass through PyTorch's dispatcher: no subclass, compiler, mode, transform or profiler.

    The dispatcher turns lists into its own and back into Python's; for 200 tensors that takes as long as all checks.
    """
    types: set[type] = set()
    for value in args:
        types.update(map(type, value) if isinstance(value, (list, tuple)) else (type(value),))
    return types <= _PLAIN_ARGUMENTS and not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._autograd._profiler_enabled()
    )


def below_autograd() -> AbstractContextManager[None]:
    """Inside, an op runs without looking at its derivative: how a derivative calls its own op."""
    guard: AbstractContextManager[None] = torch._C._AutoDispatchBelowAutograd()
    return guard
