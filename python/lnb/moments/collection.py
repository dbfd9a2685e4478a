"""``Moments``: the moments of all layers of a model, in memory, in a file, or computed one by one as they are read."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lnb.moments.metadata import write_metadata
from lnb.moments.naming import is_transposed, unwrapped
from lnb.moments.record import LayerInfo, LayerMoment, MissingMoment, combined, merged_info, require_moment
from lnb.moments.tensor_file import write_tensors


@runtime_checkable
class Source(Protocol):
    """Where moments come from: what they are of is known at once, the tensors are made or read when they are asked "
    "for."""

    @property
    def infos(self) -> Mapping[str, LayerInfo]:
        """What each layer's moment describes, by the layer's name."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Layers of the model without a moment, each with the reason."""

    def read(self, name: str) -> LayerMoment:
        """One layer's moment."""


class InMemory:
    """Moments that are there."""

    def __init__(self, moments: Iterable[LayerMoment], absent: Mapping[str, str] | None = None) -> None:
        self._moments = {moment.info.name: moment for moment in moments}
        self.infos = {name: moment.info for name, moment in self._moments.items()}
        self.absent = dict(absent or {})

    def read(self, name: str) -> LayerMoment:
        """The moment itself."""
        return self._moments[name]


class _Merged:
    """The sums of several sources, added up as they are read."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self.infos = {name: merged_info([source.infos[name] for source in sources]) for name in sources[0].infos}
        self.absent = {name: reason for source in sources for name, reason in source.absent.items()}

    def read(self, name: str) -> LayerMoment:
        return combined([source.read(name) for source in self._sources])


class Moments(Mapping[str, LayerMoment]):
    """The input moments of a model's layers, by the layers' names.

    Reading a layer of a file reads that layer alone, anew each time: a large model's moments never have to fit in memory.

    Args:
        source: moments of layers, or where they come from.
    """

    def __init__(self, source: Source | Iterable[LayerMoment]) -> None:
        self._source: Source = source if isinstance(source, Source) else InMemory(source)

    @property
    def infos(self) -> Mapping[str, LayerInfo]:
        """What each layer's moment describes, without reading it."""
        return self._source.infos

    @property
    def absent(self) -> Mapping[str, str]:
        """Layers of the model that have no moment, each with the reason."""
        return self._source.absent

    def __getitem__(self, name: str) -> LayerMoment:
        if name in self.infos:
            return self._source.read(name)
        if name in self.absent:
            raise MissingMoment(f"layer {name!r} has no moment: {self.absent[name]}")
        raise MissingMoment(
            f"no layer {name!r} is among the moments of {reprlib.repr(sorted(self.infos))}; they are of another "
            f"model, or were "
            f"gathered without it: gather or export them of this model"
        )

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    __eq__ = object.__eq__  # a Mapping would read all layers to compare
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Moments of {len(self)} layers"

    def merge(self, *others: Moments) -> Moments:
        """The moments of all samples of these and ``others``: of several files, or of the ranks of one run.

        Counts add up exactly; averages are weighted by them, in float64. Layers are read and merged when they are asked for.

        Raises:
            TypeError: one of ``others`` is no :class:`Moments`.
            ValueError: they are not of the same layers, in the same blocks.
        """
        for i, other in enumerate(others):
            if not isinstance(other, Moments):
                raise TypeError(f"others[{i}]={reprlib.repr(other)} must be a Moments, not {type(other).__name__}")
            differing = sorted(self.infos.keys() ^ other.infos.keys())
            if differing:
                raise MissingMoment(
                    f"others[{i}]: layers {reprlib.repr(differing)} are among the moments of one side only; gather "
                    f"or export both "
                    f"of the same model, or merge Moments of the layers that both have"
                )
            for name, info in self.infos.items():
                if info.place != other.infos[name].place:
                    combined([self[name], other[name]])  # says what differs
        return Moments(_Merged([self._source, *(other._source for other in others)]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all to a safetensors file, layer by layer: memory is needed for one of them.

        The file is written beside ``path`` and put there when it is complete.

        Raises:
            ValueError: a moment holds NaN or inf; nothing was written.
        """

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, info in self.infos.items():
                moment = self._source.read(name).check("nothing was written: gather or export it anew")
                for part in info.shapes:
                    yield f"{name}.{part}", getattr(moment, part)
                del moment  # before the next one is read

        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, info in self.infos.items():
            for part, shape in info.shapes.items():
                shapes[f"{name}.{part}"] = (torch.float64 if part == "count" else info.dtype, shape)
        write_tensors(path, shapes, tensors(), write_metadata(self.infos, self.absent))

    def parameter(self, model: nn.Module, name: str) -> nn.Parameter:
        """The weight in ``model`` of layer ``name``.

        Raises:
            ValueError: the model has no such parameter, or one of another shape.
        """
        info = self.infos[name] if name in self.infos else self[name].info  # the latter raises
        model = unwrapped(model)
        try:
            weight = model.get_parameter(info.parameter)
        except AttributeError:
            raise ValueError(
                f"model={type(model).__name__} has no parameter {info.parameter!r}, of which there is a moment; the "
                f"moments are of "
                f"another model: gather or export them of this one"
            ) from None
        info.matrix(weight.t() if is_transposed(model, info.parameter) else weight)
        return weight

    def to_gptq_hessian(self, name: str, allow_blocks: bool = False) -> Tensor:
        """``H = 2 X'X / N`` of a layer, ``[d_in, d_in]``, or ``[groups, d_in, d_in]`` where it has several groups.

        This is the Hessian of ``E ||W x||^2`` in a row of ``W``. ``N`` counts samples (tokens, patches). GPTQ's first code and
        llm-compressor divide by the number of sequences instead, so that their matrix is this one times samples per sequence;
        the weights that GPTQ chooses do not depend on that factor, because damping is relative to the mean diagonal.

        Args:
            name: of the layer.
            allow_blocks: for moments in blocks, set what is outside of them to zero.

        Raises:
            ValueError: there are only blocks, and ``allow_blocks`` is not set; or it holds NaN, which other tools would answer
                with rounding.
        """
        moment = require_moment(self[name])
        if not moment.is_full and not allow_blocks:
            raise ValueError(
                f"layer {name!r}: its second moment is in {moment.info.blocks} diagonal blocks of {moment.info.size} "
                f"inputs, and a "
                f"Hessian needs all of it: train with block_size=None or use gather_moments(model, loader); or pass "
                f"allow_blocks=True for zeros outside of the blocks, which quantises worse"
            )
        blocks = moment.second_moment.to(torch.float64).mul(2).to(moment.info.dtype)
        hessian = torch.stack([torch.block_diag(*group) for group in blocks])
        return hessian[0] if len(hessian) == 1 else hessian
