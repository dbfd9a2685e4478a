"""Moments exported from a training: what an :class:`lnb.LNB` keeps of every layer, and the files that hold moments."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lnb.moments.collection import InMemory, Moments
from lnb.moments.metadata import read_metadata
from lnb.moments.naming import names_in, unwrapped
from lnb.moments.record import LayerInfo, LayerMoment, MissingMoment
from lnb.moments.state import tracked_of
from lnb.moments.tensor_file import REMEDY, TensorFile
from lnb.optimizer import LNB
from lnb.statistics.tracked import Tracked


def export_moments(
    source: LNB | tuple[nn.Module, Mapping[str, Any]], path: str | os.PathLike[str] | None = None
) -> Moments:
    """The input moments that LNB kept while it trained, of every layer that it optimizes.

    They are averages over the refreshes of the training (with the default, of decay 0.9 per refresh), in LNB's diagonal
    blocks; with ``block_size=None`` they are full. No data is needed. ``count`` is the number of samples that an unweighted
    average of the same certainty would have, from the samples of a layer's first step (of one rank).

    Args:
        source: the optimizer; or the model with a state dict, as :meth:`lnb.LNB.state_dict` or torch's
            ``get_optimizer_state_dict`` returned it.
        path: a safetensors file to write, with one layer in memory at a time; None to return all moments in new tensors.

    Returns:
        The moments; those of the file where one was written.

    Raises:
        TypeError: ``source`` is something else.
        ValueError: there are no moments to export, the state is of another model, or holds NaN; nothing was written.
    """
    if isinstance(source, LNB):
        model, tracked = source.model, source.tracked()
    elif (
        isinstance(source, tuple)
        and len(source) == 2
        and isinstance(source[0], nn.Module)
        and isinstance(source[1], Mapping)
    ):
        model = source[0]
        tracked = tracked_of(unwrapped(model), source[1])
    else:
        raise TypeError(
            f"source={reprlib.repr(source)} must be an lnb.LNB, or a tuple of a model and a state dict of an LNB; "
            f"for models "
            f"that LNB did not train, use gather_moments(model, loader)"
        )
    moments = Moments(_OfTraining(unwrapped(model), tracked))
    if not moments:
        raise ValueError(
            f"source: there is nothing to export: {reprlib.repr(dict(moments.absent))}. Take a step first, use a "
            f"preset that keeps "
            f"second moments ('fast'), or gather_moments(model, loader)"
        )
    if path is None:
        return Moments(InMemory([moments[name] for name in moments], moments.absent))
    moments.save(path)
    return load_moments(path)


def load_moments(path: str | os.PathLike[str]) -> Moments:
    """Moments of a file that :func:`export_moments` or :meth:`Moments.save` wrote. Layers are read one by one when asked for.

    Raises:
        ImportError: the package safetensors is not installed (``pip install 'lnb-kernels[moments]'``).
        OSError: the file cannot be opened.
        ValueError: it is truncated, damaged, or no file of moments; or, when a layer is read, that layer holds NaN.
    """
    return Moments(_OfFile(path))


class _OfTraining:
    """Moments computed from an optimizer's state as they are read: ``E[x x']`` is the average over its last entry."""

    def __init__(self, model: nn.Module, tracked: Iterable[Tracked]) -> None:
        self.infos: dict[str, LayerInfo] = {}
        self.absent: dict[str, str] = {}
        self._tracked: dict[str, Tracked] = {}
        tracked = list(tracked)
        for each, names in zip(tracked, names_in(model, [each.layer for each in tracked]), strict=True):
            owner, layer = each.layer, names.layer
            raw = each.state.get("second_moment")
            if raw is None or float(raw[0, 0, -1, -1]) == 0:
                self.absent[layer] = _reason(each)
                continue
            groups, blocks, ones, _ = raw.shape
            self._tracked[layer] = each
            self.infos[layer] = LayerInfo(
                layer, owner.kind, names.parameter, names.bias, groups, blocks, ones - 1, owner.d_out, raw.dtype,
                "training", each.decay, int(each.state["second_moment_step"]),
            )  # fmt: skip

    def read(self, name: str) -> LayerMoment:
        """One layer's, in new tensors."""
        each, info = self._tracked[name], self.infos[name]
        raw = each.state["second_moment"].detach()
        corrections = raw[..., -1:, -1:]  # 1 - b^t
        mean = (raw[..., -1, :-1] / corrections.squeeze(-1)).flatten(1)
        count = torch.full((info.groups,), effective_samples(each), dtype=torch.float64)
        moment = LayerMoment(info, raw[..., :-1, :-1] / corrections, mean, count)
        return moment.check(
            "the optimizer's state is damaged: load another checkpoint, or gather_moments(model, loader)"
        )


def _reason(each: Tracked) -> str:
    if not each.state:
        return "it has made no step that reached this layer"
    return "its setting keeps no second moment between steps (refresh_every=1 and b_s=0, or a solver without one); gather it"


def effective_samples(each: Tracked) -> float:
    """Samples of an unweighted average as certain as the decayed one (:func:`lnb.statistics.running.sample_ridge_of`).

    NaN where the samples of a step or the decay are unknown.
    """
    if each.samples is None or each.decay is None:
        return float("nan")
    past: float = each.decay ** max(1.0, float(each.state["second_moment_step"]))
    return float(each.samples) * (1 - past) / (1 + past) * (1 + each.decay) / (1 - each.decay)


class _OfFile:
    """Moments in a file, whose metadata is read and checked at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = TensorFile(path)
        self.infos, self.absent = read_metadata(self._file.metadata, f"{path}")
        missing = {f"{name}.{part}" for name, info in self.infos.items() for part in info.shapes} - self._file.names
        if missing:
            raise MissingMoment(f"{path}: tensors {reprlib.repr(sorted(missing))} are missing; {REMEDY}")

    def read(self, name: str) -> LayerMoment:
        """One layer's."""
        info = self.infos[name]
        tensors = self._file.read(f"{name}.{part}" for part in info.shapes)
        parts: dict[str, Tensor] = {part: tensors[f"{name}.{part}"] for part in info.shapes}
        for part, tensor in parts.items():
            wanted = torch.float64 if part == "count" else info.dtype
            if tensor.dtype != wanted:
                raise ValueError(f"{self._file.path}: {name}.{part} is {tensor.dtype}, not {wanted}; {REMEDY}")
        return LayerMoment(info, **parts).check(f"{self._file.path}: {REMEDY}")
