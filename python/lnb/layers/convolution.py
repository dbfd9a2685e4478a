"""``nn.Conv2d`` and ``nn.Conv1d``, which is a 2-d convolution of images of height 1."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.layers.capture import Capture
from lnb.layers.kind import LayerKind
from lnb.layers.probed import ProbedLayer

_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")
_Conv = nn.Conv1d | nn.Conv2d


def _pair(values: Any) -> tuple[int, int]:
    """Numbers of a convolution's axes as those of two axes, with 1 for the height that a 1-d one lacks."""
    return (1, *values) if len(values) == 1 else tuple(values)


def _padding(conv: _Conv) -> str | tuple[int, int]:
    """The padding that is left once a padding mode other than zeros has been applied."""
    if conv.padding_mode != "zeros":
        return 0, 0
    if isinstance(conv.padding, str):
        return conv.padding
    return (0, *conv.padding) if len(conv.padding) == 1 else cast("tuple[int, int]", conv.padding)


def _images(conv: _Conv, input: Tensor) -> Tensor:
    """The input as images ``[.., C, H, W]``, with what a padding mode other than zeros adds."""
    if conv.padding_mode != "zeros":
        input = F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    # PyTorch, too, copies a 1-d input of other strides first: sums are in the same order.
    return input.contiguous().unsqueeze(-2) if len(conv.kernel_size) == 1 else input


def _convolve(conv: _Conv, capture: Capture, input: Tensor) -> Tensor:
    """The output of ``conv`` as images ``[.., C, H, W]``, with its moment probes.

    With a ``padding_mode`` other than zeros, the padded input is what the second moments are of.
    """
    input = _images(conv, input)
    weight = conv.weight.unsqueeze(-2) if conv.weight.dim() == 3 else conv.weight
    output = lk.conv2d(
        input,
        weight,
        conv.bias,
        _pair(conv.stride),
        _padding(conv),
        _pair(conv.dilation),
        conv.groups,
        probe=capture.probe_for(conv.weight),
        channel_probe=capture.channel_probe_for(conv.weight),
        **capture.reading,
    )
    # The hooks are on the images: those of a view, which a 1-d convolution returns, are lost when it is written in place.
    capture.keep(conv.weight, input, output)
    capture.count(conv.weight, input, output, output.numel() // conv.out_channels)
    return output


def _is_plain(capture: Capture) -> bool:
    """Whether this forward pass is the original's. Compiled code does not ask what may change from step to step."""
    return not torch.compiler.is_compiling() and capture.idle


class ProbedConv2d(ProbedLayer, nn.Conv2d):
    """An attached ``nn.Conv2d``."""

    _lnb_original = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        """``nn.Conv2d``'s forward, with the layer's moment probes."""
        if _is_plain(self._lnb_captures["weight"]):
            return super().forward(input)
        return _convolve(self, self._lnb_captures["weight"], input)


class ProbedConv1d(ProbedLayer, nn.Conv1d):
    """An attached ``nn.Conv1d``."""

    _lnb_original = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:
        """``nn.Conv1d``'s forward, with the layer's moment probes."""
        if _is_plain(self._lnb_captures["weight"]):
            return super().forward(input)
        return _convolve(self, self._lnb_captures["weight"], input).squeeze(-2)


class Conv2dKind(LayerKind):
    """``nn.Conv2d``: every position of the output is a sample, the patch of the padded input that it is made of.

    A sample has ``d_in = C / groups * kh * kw`` entries, in the order of the weight.
    """

    original: ClassVar[type[nn.Module]] = nn.Conv2d
    probed: ClassVar[type[ProbedLayer]] = ProbedConv2d
    words = "convolution"
    group_words = "groups"
    has_patches = True
    product = "conv"

    def captures(self, module: nn.Module) -> dict[str, Capture]:
        """One, of the patches and of the channels."""
        conv = cast(_Conv, module)
        d_in = math.prod(conv.weight.shape[1:])  # not of weight[0], for which a sharded one would be gathered
        return {"weight": Capture(d_in, conv.groups, conv.in_channels)}

    def refusal(self, cls: type[nn.Module]) -> str | None:
        """A replaced ``_conv_forward`` counts as one, too."""
        found: Any = cls
        if found._conv_forward is not cast(Any, self.original)._conv_forward:
            return f"{cls.__name__} has its own _conv_forward"
        return super().refusal(cls)

    def groups(self, module: nn.Module, weight: str) -> int:
        """The convolution's groups."""
        return cast(_Conv, module).groups

    def kernel(self, module: nn.Module) -> tuple[int, int]:
        """``kh, kw``."""
        return _pair(cast(_Conv, module).kernel_size)

    def stride_area(self, module: nn.Module) -> int:
        """The product of the strides."""
        return math.prod(cast(_Conv, module).stride)

    def shifts(self, module: nn.Module) -> int:
        """``((2 kh - 1) (2 kw - 1) + 1) / 2``."""
        return (math.prod(2 * k - 1 for k in cast(_Conv, module).kernel_size) + 1) // 2

    def geometry(self, module: nn.Module) -> tuple[object, ...]:
        """All but the sizes of the weight."""
        return tuple(getattr(module, name) for name in _GEOMETRY)

    def kept(self, module: nn.Module, x: Tensor) -> Tensor:
        """Images, padded where the padding is not of zeros."""
        return _images(cast(_Conv, module), x)

    def count(self, module: nn.Module, x: Tensor) -> int:
        """The positions of the outputs of images ``[.., C, H, W]``."""
        conv = cast(_Conv, module)
        padding, stride, dilation = _padding(conv), _pair(conv.stride), _pair(conv.dilation)
        samples = x.shape[0] if x.dim() == 4 else 1
        for axis, (size, kernel) in enumerate(zip(x.shape[-2:], _pair(conv.kernel_size), strict=True)):
            if padding == "same":
                samples *= size
                continue
            padded = 0 if isinstance(padding, str) else padding[axis]
            samples *= (size + 2 * padded - dilation[axis] * (kernel - 1) - 1) // stride[axis] + 1
        return samples

    def samples(self, module: nn.Module, inputs: list[Tensor], dtype: torch.dtype) -> Tensor:
        """The patches of the images."""
        conv = cast(_Conv, module)
        padding = list(conv._reversed_padding_repeated_twice) if conv.padding_mode == "zeros" else []
        pieces = []
        for x in inputs:
            images = F.pad(x.to(dtype).reshape(-1, *x.shape[-3:]), padding)
            patches: Tensor = F.unfold(
                images, _pair(conv.kernel_size), _pair(conv.dilation), 0, _pair(conv.stride)
            )  # [n, C kh kw, p]
            pieces.append(patches.unflatten(1, (conv.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2))
        return torch.cat(pieces, dim=1)

    def matvec(self, module: nn.Module, x: Tensor, direction: Tensor, ridge: float) -> Tensor:
        """The same, of the patches of images ``[.., C, H, W]``."""
        conv = cast(_Conv, module)
        geometry = _pair(conv.kernel_size), _pair(conv.stride), _padding(conv), _pair(conv.dilation), conv.groups
        product: Tensor = lk.conv2d_cov_matvec(x, direction, *geometry, ridge)
        return product

    def second_moment(self, module: nn.Module, x: Tensor, blocks: int) -> Tensor:
        """The second moment of the patches."""
        conv = cast(_Conv, module)
        moments: Tensor = lk.conv2d_second_moment(
            x,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _padding(conv),
            _pair(conv.dilation),
            conv.groups,
            blocks,
        )
        return cast(Tensor, moments.unflatten(0, (conv.groups, blocks)))

    def product_size(self, samples: int, d_in: int, d_out: int, groups: int) -> float:
        """The root of the size of the weight's matrices."""
        return float((d_in * d_out) ** 0.5)


class Conv1dKind(Conv2dKind):
    """``nn.Conv1d``. Its inputs are kept as images of height 1."""

    original = nn.Conv1d
    probed = ProbedConv1d
