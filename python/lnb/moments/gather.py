"""Moments of a model that LNB did not train: its layers' inputs on a data set, summed up batch by batch."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lnb.config import check_count
from lnb.layers.capture import statistics_dtype
from lnb.moments.collection import InMemory, Moments
from lnb.moments.naming import Names, unwrapped
from lnb.moments.record import DTYPES, LayerInfo, LayerMoment
from lnb.moments.taps import Tap, taps_of, watched

Forward = Callable[[nn.Module, Any], object]


def gather_moments(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    block_size: int | None = None,
    layers: Iterable[str] | None = None,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
    dtype: torch.dtype | None = None,
) -> Moments:
    """The input moments of every linear, convolution and attention layer, over the batches of ``loader``.

    The model runs in evaluation mode without gradients and is left as it was, also after an exception: modes, hooks, gradients,
    and what an :class:`lnb.LNB` has gathered. Every sample counts, padding tokens too.

    Args:
        model: any model, attached or not.
        loader: gives batches: tensors (``model(batch)``), dicts (``model(**batch)``), or tuples and lists whose first entry is
            the input (``model(batch[0])``).
        block_size: inputs of a diagonal block, cut as :class:`lnb.LNB` cuts; None for full second moments.
        layers: names of layers to gather; None for all. Several passes over some layers each need less memory.
        device: where the batches are moved; None for the device of the model's first parameter. The model stays where it is.
        forward: ``forward(model, batch)`` runs the model, without wrappers such as ``DistributedDataParallel``, on a batch that
            was moved; in place of the rule above.
        dtype: of sums and results, float32 or float64, into which inputs are widened first; None for float64 where a layer's
            weight is, else float32.

    Returns:
        The moments, on the CPU. A layer that saw no samples is in ``Moments.absent``, and warned of.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a layer is unknown, no layer saw a sample, or one saw NaN or inf.
    """
    inside = unwrapped(model)
    if block_size is not None:
        check_count("block_size", block_size)
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype={dtype!r} must be None, torch.float32 or torch.float64")
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | Mapping | str):
        raise TypeError(f"loader={reprlib.repr(loader)} must give batches: a DataLoader, or a list of them")
    sums = [_Sums(tap, names, block_size, dtype) for tap, names in _chosen(inside, layers)]
    by_tap = {each.tap: each for each in sums}
    target = device if device is not None else next((p.device for p in inside.parameters()), torch.device("cpu"))
    run = _run if forward is None else forward
    with (
        _evaluating(model),
        torch.no_grad(),
        watched(inside, list(by_tap), lambda tap, x, groups: by_tap[tap].add(x, groups)),
    ):
        for batch in loader:
            entries = dict(batch) if isinstance(batch, Mapping) else batch  # also of a tokenizer's own kind
            run(inside, tree_map_only(Tensor, lambda x: x.to(target, non_blocking=True), entries))
    moments = [each.moment().check("look at the batches") for each in sums if each.seen]
    unseen = {each.info.name: "it saw no samples while moments were gathered" for each in sums if not each.seen}
    if not moments:
        raise ValueError(
            f"loader: no layer of {reprlib.repr(sorted(unseen))} saw a sample; it gave no batches, or the model does "
            f"not call these "
            f"layers"
        )
    if unseen:
        warnings.warn(f"layers {reprlib.repr(sorted(unseen))} saw no samples: they have no moments", stacklevel=2)
    return Moments(InMemory(moments, unseen))


def _chosen(model: nn.Module, layers: Iterable[str] | None) -> list[tuple[Tap, Names]]:
    taps = taps_of(model)
    if not taps:
        raise ValueError(f"model={type(model).__name__} has no linear, convolution or attention layer that LNB knows")
    if layers is None:
        return taps
    if isinstance(layers, str):
        raise TypeError(f"layers={layers!r} must be a list of names, not a str")
    wanted, known = list(layers), [tap.name for tap, _ in taps]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ValueError(f"layers: {unknown} are none of the layers that can be gathered: {reprlib.repr(known)}")
    return [(tap, names) for tap, names in taps if tap.name in wanted]


def _run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    else:
        model(batch[0] if isinstance(batch, tuple | list) else batch)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Sums:
    """Sums over the samples that one layer saw: ``[X 1]'[X 1]`` in blocks, and their number for each group of the weight."""

    def __init__(self, tap: Tap, names: Names, block_size: int | None, dtype: torch.dtype | None) -> None:
        layer = tap.layer
        blocks = layer.input_blocks(block_size)
        self.tap = tap
        self.info = LayerInfo(
            tap.name, layer.kind, names.parameter, names.bias, layer.groups, blocks, layer.d_in // blocks, layer.d_out,
            dtype or statistics_dtype(layer.weight.dtype), "data",
        )  # fmt: skip
        self.counts = [0] * layer.groups
        self.total: Tensor | None = None  # [groups, blocks, size+1, size+1]

    @property
    def seen(self) -> bool:
        """Whether every group saw samples."""
        return min(self.counts) > 0

    def add(self, x: Tensor, groups: Sequence[int]) -> None:
        """Add the samples of one input to the groups of the weight that it belongs to."""
        layer, info = self.tap.layer, self.info
        kind, module = layer.layer_kind, layer.modules[0]
        x = kind.kept(module, x.double() if info.dtype == torch.float64 else x)
        moment = kind.second_moment(module, x, info.blocks).to(info.dtype)
        if self.total is None:
            self.total = moment.new_zeros(info.groups, *moment.shape[1:])
        if len(groups) == info.groups:
            self.total += moment
        else:
            self.total[list(groups)] += moment
        for group in groups:
            self.counts[group] += kind.count(module, x)

    def moment(self) -> LayerMoment:
        """The averages, on the CPU. The sums are used up."""
        assert self.total is not None
        total, self.total = self.total.cpu(), None
        count = torch.tensor(self.counts, dtype=torch.float64)
        total /= count.view(-1, 1, 1, 1).to(total.dtype)
        return LayerMoment(self.info, total[..., :-1, :-1].contiguous(), total[..., -1, :-1].flatten(1), count)
