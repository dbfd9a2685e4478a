"""What the backward pass leaves behind in an attached layer: its second moment, or its inputs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which statistics of tensors of ``dtype`` are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Capture:
    """The probes and kept inputs of one layer.

    A probe is one number expanded to the shape of the second moment: it takes no memory, and autograd gives it a
    gradient of full size only on the steps on which it is switched on.
    """

    def __init__(self, probe_shape: tuple[int, ...], channels: int | None) -> None:
        self.probe_shape = probe_shape
        self.channels = channels
        self.probe: Tensor | None = None
        self.channel_probe: Tensor | None = None
        self.moments_on = False
        self.channels_on = False
        self.inputs_on = False
        self.inputs: list[Tensor] = []

    @classmethod
    def for_layer(cls, module: nn.Module) -> Capture:
        """The capture of a ``nn.Linear`` or ``nn.Conv2d``, switched off."""
        if isinstance(module, nn.Conv2d):
            patch = module.weight[0].numel()
            return cls((module.groups, patch + 1, patch + 1), module.in_channels)
        d_in = cast(nn.Linear, module).in_features
        return cls((d_in + 1, d_in + 1), None)

    def switch(self, weight: Tensor, *, moments: bool, channels: bool, inputs: bool) -> None:
        """Choose what the next backward pass leaves: the second moment, per-channel moments, the inputs.

        The probes are made here, like the layer's ``weight``, so that a compiled forward only reads them.
        """
        self.moments_on, self.channels_on, self.inputs_on = moments, channels and self.channels is not None, inputs
        if self.moments_on and (self.probe is None or not _matches(self.probe, weight)):
            self.probe = _new_probe(self.probe_shape, weight)
        if self.channels_on and (self.channel_probe is None or not _matches(self.channel_probe, weight)):
            self.channel_probe = _new_probe((3, cast(int, self.channels)), weight)

    def probe_for(self, input: Tensor) -> Tensor | None:
        """The probe to hand to the layer's op with ``input``; None while it is switched off."""
        if not self.moments_on:
            return None
        if self.probe is None or not _matches(self.probe, input):
            self.probe = _new_probe(self.probe_shape, input)
        return self.probe

    def channel_probe_for(self, input: Tensor) -> Tensor | None:
        """The probe of the per-channel moments of a convolution's unpadded input; None while it is switched off."""
        if not self.channels_on:
            return None
        if self.channel_probe is None or not _matches(self.channel_probe, input):
            self.channel_probe = _new_probe((3, cast(int, self.channels)), input)
        return self.channel_probe

    def keep(self, input: Tensor, output: Tensor) -> None:
        """Keep ``input`` until the step, if a backward pass reaches ``output`` and inputs are switched on."""
        if self.inputs_on and output.requires_grad:
            kept = input.detach()
            output.register_hook(lambda gradient: self.inputs.append(kept))

    @property
    def moments(self) -> Tensor | None:
        """The second moment gathered since the last :meth:`clear`, ``[D+1, D+1]`` (convolution: one per group)."""
        return None if self.probe is None else self.probe.grad

    @property
    def channel_moments(self) -> Tensor | None:
        """Sums, squares and counts per channel gathered since the last :meth:`clear`, ``[3, C]``."""
        return None if self.channel_probe is None else self.channel_probe.grad

    def clear(self) -> None:
        """Forget everything gathered so far."""
        for probe in (self.probe, self.channel_probe):
            if probe is not None:
                probe.grad = None
        self.inputs.clear()


def _new_probe(shape: tuple[int, ...], input: Tensor) -> Tensor:
    zero = torch.zeros((), device=input.device, dtype=statistics_dtype(input.dtype))
    return zero.expand(shape).requires_grad_()


def _matches(probe: Tensor, input: Tensor) -> bool:
    return probe.device == input.device and probe.dtype == statistics_dtype(input.dtype)
