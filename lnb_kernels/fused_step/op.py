"""The ops ``lnb_kernels::direct_layers_`` and ``lnb_kernels::finish_layers_``: schemas, fakes and dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lnb_kernels import _autocast, _backend
from lnb_kernels._library import define_in_place
from lnb_kernels._writes import require_one_kind
from lnb_kernels.fused_step import checks, reference
from lnb_kernels.fused_step.layers import DirectArguments, DirectLayer, FinishArguments, FinishLayer, Numbers
from lnb_kernels.step_tables import StepSettings

for _op, _reference in (("direct_layers_", reference.direct_layers_), ("finish_layers_", reference.finish_layers_)):
    _backend.register(
        _op,
        _reference,
        triton=f"lnb_kernels.fused_step.triton_kernel:{_op}",
        native_cuda=f"lnb_kernels.fused_step.cuda_kernel:{_op}",
    )


def _direct_kernel(
    directions: Sequence[Tensor], momentum: Sequence[Tensor], partials: Tensor, mixed_biases: Tensor, *args: Any
) -> None:
    columns, rest = args[:6], args[6:]
    layers = [DirectLayer(*entries) for entries in zip(directions, momentum, *columns, strict=True)]
    with _autocast.disabled(partials.device):
        _backend.call("direct_layers_", momentum[0], layers, DirectArguments(partials, mixed_biases, *rest))


def _finish_kernel(bias_momentum: Sequence[Tensor], bias_directions: Sequence[Tensor], *args: Any) -> None:
    numbers = Numbers(*args[:11])
    partials, mixed_biases, input_size, bias_gradients, rows, column_blocks, steps, step_places, *rest = args[11:]
    norms, usual_norms, rates, rate_tensors, bias_shares, settings, ok = rest
    # A schema has no list of optional tensors that are written: these are there where there is a gradient.
    given = iter(zip(bias_momentum, bias_directions, strict=True))
    biases = [(None, None) if gradient is None else next(given) for gradient in bias_gradients]
    of_layers = zip(
        rows, column_blocks, biases, bias_gradients, step_places, usual_norms, rates, rate_tensors, strict=True
    )
    layers = [
        FinishLayer(n, blocks, bias[0], bias[1], gradient, place, usual, rate if tensor is None else tensor)
        for n, blocks, bias, gradient, place, usual, rate, tensor in of_layers
    ]
    of_step = StepSettings.of_numbers(settings)
    shared = FinishArguments(numbers, partials, mixed_biases, input_size, steps, norms, bias_shares, of_step, ok)
    with _autocast.disabled(partials.device):
        _backend.call("finish_layers_", numbers.row_scales, layers, shared)


def _fake(*_: object) -> None:
    """Nothing is returned."""


_direct_layers_ = define_in_place(
    "direct_layers_(Tensor(a!)[] directions, Tensor(b!)[] momentum, Tensor(c!) partials, Tensor(d!) mixed_biases, "
    "Tensor[] gradients, Tensor?[] bias_gradients, Tensor?[] bias_momentum, Tensor[] inverses, Tensor?[] means, "
    "Tensor[] roots, Tensor shares, Tensor? bias_shares, float decay, float take, Tensor? ok, str precision) -> ()",
    _direct_kernel,
    _fake,
    writes=4,
)
_finish_layers_ = define_in_place(
    "finish_layers_(Tensor(a!)[] bias_momentum, Tensor(b!)[] bias_directions, Tensor(c!) row_scales, Tensor(d!) row_square, "
    "Tensor(e!) independent, Tensor(f!) growth, Tensor(g!) radius, Tensor(h!) coherence, Tensor(i!) sums, Tensor(j!) scales, "
    "Tensor(k!) products, Tensor(l!) weight_norm, Tensor(m!) shorter, Tensor partials, Tensor mixed_biases, Tensor input_size, "
    "Tensor?[] bias_gradients, "
    "int[] rows, int[] column_blocks, Tensor steps, "
    "int[] step_places, Tensor? norms, float[] usual_norms, float[] rates, Tensor?[] rate_tensors, Tensor? bias_shares, "
    "float[] settings, Tensor? ok) -> ()",
    _finish_kernel,
    _fake,
    writes=13,
)


def direct_layers_(
    directions: Sequence[Tensor],
    momentum: Sequence[Tensor],
    partials: Tensor,
    mixed_biases: Tensor,
    gradients: Sequence[Tensor],
    bias_gradients: Sequence[Tensor | None],
    bias_momentum: Sequence[Tensor | None],
    inverses: Sequence[Tensor],
    means: Sequence[Tensor | None],
    roots: Sequence[Tensor],
    shares: Tensor,
    bias_shares: Tensor | None,
    decay: float,
    take: float,
    ok: Tensor | None = None,
    precision: str = "tf32",
) -> None:
    """The first pass of a step over all layers: average the gradients, look ahead, and make directions, in one launch.

    For each layer, and each tile of one block of rows and one block of columns of it,

        ``m <- b m + (1 - b) g``,  ``g~ = share m + take g``,  ``M = P^(-1/2) (g~ - b~ mu')``,  ``H = M C^-1``

    with ``b~``, the same of the bias, whose average is left to :func:`finish_layers_`. ``H`` goes to ``directions`` as it is:
    rows have their scales from :func:`finish_layers_`, so a common factor of a row does not matter. ``P^(-1/2)`` counts at unit
    size: each of its blocks is multiplied by the power of two that brings its largest entry into ``[0.5, 1)``. Each tile is
    scaled likewise, and its results are divided again, so that no product inside a tile overflows or vanishes because of the
    size of the gradient. ``H`` must be in the range of float32 as it is.

    The sums of the rows of a tile are the same bits in every run. This is :func:`lnb_kernels.multi_tensor.ema_combined_`
    followed by the unscaled part of :func:`lnb_kernels.two_sided_directions_`.

    Errors of ``H``, root mean square relative to that of ``H``, for well-conditioned blocks: "tf32" rounds operands of products
    to 11 bits, about 4e-4; "bf16" to 8 bits, about 3e-3; "tf32x3" splits each operand in two of 11 bits and takes three
    products, which is as exact as float32. Sums are in float32 in all three. The precision is that of the CUDA kernel; where
    :func:`serves` says that it does not take a layer, and on other devices, products are PyTorch's in float32.

    Args:
        directions: per layer ``H``, ``[..., m, d]``, float32 or bfloat16, all of one dtype; written.
        momentum: per layer ``m``, ``[..., m, d]``, float32; written.
        partials: ``[partial_count(rows, column_blocks)]``, float64 (float32 on devices without it); written. It holds
            ``[d / size, rows, 6]`` of one layer after the other: ``<H, M>``, ``||H||^2``, ``H mu`` (0 without a bias),
            ``<H, g~>``, ``||g~||^2`` and ``||g||^2`` of every row of all its matrices in every block of columns.
        mixed_biases: ``P^(-1/2) b~`` ``[rows of all layers]``, dtype as ``partials``; written for layers with a bias.
        gradients: per layer ``g``, ``[..., m, d]``, float32, bfloat16 or float16; all of one dtype.
        bias_gradients: per layer as many entries as rows, dtype as ``gradients``; None without a bias.
        bias_momentum: per layer as many entries as rows, float32, not written; None without a bias.
        inverses: the diagonal blocks of ``C^-1``, ``[..., d / size, size, size]``, float32.
        means: ``mu``, ``[..., d]``, float32; None without a bias.
        roots: the diagonal blocks of ``P^(-1/2)``, ``[..., m / side, side, side]``, float32.
        shares: the factors of ``m`` in ``g~``, ``[layers]``, dtype as ``partials``.
        bias_shares: the same of the biases; None where no layer has one.
        decay: ``b``, in [0, 1].
        take: the factor of ``g`` in ``g~``. Where it is 0 gradients count through the averages only.
        ok: bool tensor ``[]`` on the same device. Nothing is written where it is False; the host does not wait for it.
        precision: of the products: "tf32", "tf32x3" or "bf16".

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: lengths, shapes or devices do not fit, written tensors share memory, or a number is out of range; the
            message names the layer. Nothing was written.
        RuntimeError: a written tensor requires grad while autograd records.
    """
    op = "direct_layers_"
    columns = {
        "directions": directions, "momentum": momentum, "gradients": gradients, "bias_gradients": bias_gradients,
        "bias_momentum": bias_momentum, "inverses": inverses, "means": means, "roots": roots,
    }  # fmt: skip
    checks.direct(op, columns, partials, mixed_biases, shares, bias_shares, decay, take, ok, precision)
    if not momentum:
        return
    require_one_kind(
        op,
        {"directions": directions, "momentum": momentum, "partials": partials, "mixed_biases": mixed_biases},
        gradients=gradients, bias_gradients=bias_gradients, bias_momentum=bias_momentum, inverses=inverses, means=means,
        roots=roots, shares=shares, bias_shares=bias_shares, ok=ok,
    )  # fmt: skip
    _direct_layers_(
        directions, momentum, partials, mixed_biases, gradients, bias_gradients, bias_momentum, inverses, means, roots,
        shares, bias_shares, decay, take, ok, precision,
    )  # fmt: skip


def finish_layers_(
    bias_momentum: Sequence[Tensor | None],
    bias_directions: Sequence[Tensor | None],
    row_scales: Tensor,
    row_square: Tensor,
    independent: Tensor,
    growth: Tensor,
    radius: Tensor,
    coherence: Tensor,
    sums: Tensor,
    scales: Tensor,
    products: Tensor,
    weight_norm: Tensor,
    shorter: Tensor,
    partials: Tensor,
    mixed_biases: Tensor,
    input_size: Tensor,
    bias_gradients: Sequence[Tensor | None],
    rows: Sequence[int],
    column_blocks: Sequence[int],
    steps: Tensor,
    step_places: Sequence[int],
    norms: Tensor | None,
    usual_norms: Sequence[float],
    rates: Sequence[float | Tensor],
    bias_shares: Tensor | None,
    settings: StepSettings,
    ok: Tensor | None = None,
) -> None:
    """The pass between :func:`direct_layers_` and moving the weights, for all layers in one launch.

    Rows: the mean square of their gradients ``v <- v + (1 - b_rows) (||g_i||^2 + b_i^2 - v)``, ``a = min(1, sqrt((||g~_i||^2 +
    b~_i^2) / v^))`` with ``v^ = v / (1 - b_rows^t)``, and with ``c`` of ``mixed_biases``

        ``row_scale = a / sqrt(<H, M> + c^2)``,  ``h = row_scale (c - H mu)``

    0 where that is not positive. Layers: their sums, the independent square, radius, coherence and growth, and what the
    direction is multiplied by beside ``lr``: the rules of :mod:`lnb.damping` and :mod:`lnb.weight_bound`, as on the CPU. A
    direction is then ``scale row_scale H`` of the weight and ``scale h`` of the bias. All sums are the same bits in every run.

    Numbers of layers, of rows of all layers and of all steps are ``[layers]``, ``[rows]`` and ``[steps]``, side by side in the
    layers' order. "wide" is float64 (float32 on devices without it).

    Args:
        bias_momentum: ``m`` of the bias, as many entries as rows, float32; written. None without a bias.
        bias_directions: ``h``, as many entries as rows, float32; written. None without a bias.
        row_scales: ``[rows]``, float32; written.
        row_square: ``v``, ``[rows]``, wide; written.
        independent: sum of the ``||g_s||^2`` times the squared weights of ``g_s`` in ``m``, ``[layers]``, wide; written.
        growth: of the weights since their norm was measured, ``[layers]``, wide; written.
        radius: the share of its region that a layer uses, ``[layers]``, wide; written.
        coherence: the average of ``||g~||^2`` over what independent gradients would make it, from zero, ``[layers]``, wide;
            written.
        sums: ``<H, g~> + <h, b~>``, ``||H||^2``, the same were every agreement 1, and ``||g~||^2 + ||b~||^2``, with rows
            scaled, ``[layers, 4]``, wide; written.
        scales: ``[layers]``, wide; written. 0 where the layer's product is not finite.
        products: the first of ``sums``, ``[layers]``, wide; written.
        weight_norm: ``||W||`` measured last, 0 for never, ``[layers]``, wide; written where ``norms`` has a measure.
        shorter: ``[layers]``, wide; written: the factor by which the step also multiplies the weights, which takes back their
            growth since the last measurement (:mod:`lnb.weight_bound`). The norm kept is that after it. It is 1, and the
            growth stays, where nothing was measured before, and where the layer stands still.
        partials, mixed_biases: of :func:`direct_layers_`.
        input_size: the root of the mean diagonal of each layer's metric, 0 for unknown, ``[layers]``, wide. Where it is known,
            squares of the bias's gradients count ``2^-100`` in ``row_square``, agreement and ``sums`` (:mod:`lnb.damping`).
        bias_gradients: as for :func:`direct_layers_`.
        rows: of each layer, of all its matrices.
        column_blocks: of each layer, diagonal blocks of the inverse of one matrix.
        steps: ``t``, which counts this step, ``[steps]``, float32.
        step_places: of each layer, where its count is in ``steps``.
        norms: where this step measured ``||W||``, that, and where it did not a negative number, ``[layers]``, wide; None for no
            layer.
        usual_norms: of each layer, the least norm that its weight counts as having.
        rates: each layer's learning rate: a number, or a scalar tensor of any floating dtype on the device.
        bias_shares: of the biases' averages, ``[layers]``, wide; None where no layer has a bias.
        settings: of every step; those of Adam's rule do not count.
        ok: bool tensor ``[]`` on the same device. Nothing is written where it is False; the host does not wait for it.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: lengths, shapes or devices do not fit, or written tensors share memory; the message names the layer.
            Nothing was written.
        RuntimeError: a written tensor requires grad while autograd records.
    """
    op = "finish_layers_"
    written = {
        "row_scales": row_scales, "row_square": row_square, "independent": independent, "growth": growth, "radius": radius,
        "coherence": coherence, "sums": sums, "scales": scales, "products": products, "weight_norm": weight_norm,
        "shorter": shorter,
    }  # fmt: skip
    biases = {"bias_momentum": bias_momentum, "bias_directions": bias_directions, "bias_gradients": bias_gradients}
    read = {"partials": partials, "mixed_biases": mixed_biases, "input_size": input_size, "steps": steps}
    lists = {
        "rows": rows, "column_blocks": column_blocks, "step_places": step_places, "usual_norms": usual_norms, "rates": rates,
    }  # fmt: skip
    checks.finish(op, written, biases, read, lists, norms, bias_shares, settings, ok)
    if not rows:
        return
    given = [[tensor for tensor in values if tensor is not None] for values in (bias_momentum, bias_directions)]
    require_one_kind(
        op, {"bias_momentum": given[0], "bias_directions": given[1], **written}, bias_gradients=bias_gradients,
        norms=norms, rates=rates, bias_shares=bias_shares, ok=ok, **read,
    )  # fmt: skip
    _finish_layers_(
        *given, *written.values(), partials, mixed_biases, input_size, bias_gradients, rows, column_blocks, steps, step_places,
        norms, usual_norms, [0.0 if isinstance(rate, Tensor) else rate for rate in rates],
        [rate if isinstance(rate, Tensor) else None for rate in rates], bias_shares,
        settings.numbers(), ok,
    )  # fmt: skip
