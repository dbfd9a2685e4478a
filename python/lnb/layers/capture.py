"""What the backward pass leaves behind in an attached layer: its second moment, or its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which statistics of tensors of ``dtype`` are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Samples:
    """What a layer's forward and backward passes worked on in one step.

    Attributes:
        count: samples in the inputs, of all micro-batches and uses: examples of the batch times positions.
        input_grad: whether the backward pass went on to the layer's input.
    """

    count: int
    input_grad: bool = True


class Capture:
    """The probes and kept inputs of one layer.

    A probe is one number expanded to the shape of the second moment: it takes no memory, and autograd gives it a
    gradient of full size only on the steps on which it is switched on.

    Attributes:
        d_in: inputs of one neuron.
        groups: of a convolution; None for a linear map.
        channels: all input channels of a convolution.
        blocks: diagonal blocks that the second moment is cut into.
        runs_on: the device of the forward pass, where that of the weight is another, as with weights that a trainer offloads.
    """

    def __init__(self, d_in: int, groups: int | None = None, channels: int | None = None) -> None:
        self.d_in = d_in
        self.groups = groups
        self.channels = channels
        self.blocks = 1
        self.runs_on: torch.device | None = None
        self.probe: Tensor | None = None
        self.channel_probe: Tensor | None = None
        self.moments_on = False
        self.channels_on = False
        self.inputs_on = False
        self.samples_on = False
        self.samples = 0
        self.input_grad = False
        self.inputs: list[Tensor] = []
        self.start: Tensor | None = None
        self.first = 0.0
        self.sample_every = 1
        self.moment_dtype: torch.dtype | None = None

    @property
    def probe_shape(self) -> tuple[int, ...]:
        """The shape of the second moment that the layer's op is asked for."""
        size = self.d_in // self.blocks + 1
        count = self.blocks * (self.groups or 1)
        return (size, size) if self.groups is None and count == 1 else (count, size, size)

    def switch(self, weight: Tensor, *, moments: bool, channels: bool, inputs: bool, blocks: int = 1) -> None:
        """Choose what the next backward pass leaves: the second moment in ``blocks``, per-channel moments, the inputs.

        Moments gathered before in other blocks are forgotten: they would not add up with these.
        """
        if self.rests and blocks == self.blocks and not (moments or channels or inputs):
            return  # nothing to switch, and nothing that would have to follow
        self.moments_on, self.channels_on, self.inputs_on = moments, channels and self.channels is not None, inputs
        if blocks != self.blocks:
            self.blocks = blocks
            self.probe = None
        self.follow(weight)

    def resize(self, d_in: int) -> None:
        """Set the number of a neuron's inputs after the layer's weight was cut. What was gathered before does not fit."""
        if d_in != self.d_in:
            self.d_in, self.probe = d_in, None

    def read(self, weight: Tensor, start: float, sample_every: int, moment_dtype: torch.dtype | None) -> None:
        """Choose what second moments read: one of every ``sample_every`` samples (images) from ``start``, and its dtype."""
        self.first, self.sample_every, self.moment_dtype = start, sample_every, moment_dtype
        if sample_every == 1:
            self.start = None
            return
        device = weight.device if self.runs_on is None else self.runs_on
        if self.start is None or self.start.device != device:
            self.start = torch.zeros((), device=device)
        self.start.fill_(start)

    @property
    def idle(self) -> bool:
        """Whether backward passes leave nothing: the layer is then as it would be without a capture."""
        return not (self.moments_on or self.channels_on or self.inputs_on or self.samples_on)

    @property
    def rests(self) -> bool:
        """Whether it is idle, and keeps nothing from before."""
        return self.idle and not self.inputs

    @property
    def reads(self) -> tuple[float, int, torch.dtype | None]:
        """What second moments read, as values to compare: where it starts, one of how many samples, and the dtype."""
        return self.first if self.sample_every > 1 else 0.0, self.sample_every, self.moment_dtype

    @property
    def reading(self) -> dict[str, Any]:
        """The keyword arguments of the layer's op that say what its second moment is taken of."""
        sample = None if self.start is None else (self.start, self.sample_every)
        return {"sample": sample, "moment_dtype": self.moment_dtype}

    def follow(self, weight: Tensor) -> None:
        """Bring the probes that are switched on to the dtype of ``weight`` and the device of its layer, with what they gathered.

        They are made here and not in the forward pass, so that a compiled forward only reads them.
        """
        device = weight.device if self.runs_on is None else self.runs_on
        dtype = statistics_dtype(weight.dtype)
        if self.moments_on:
            self.probe = _probe_like(self.probe, self.probe_shape, device, dtype)
        if self.channels_on:
            self.channel_probe = _probe_like(self.channel_probe, (3, cast(int, self.channels)), device, dtype)
        if self.start is not None:
            self.start = self.start.to(device)
        self.inputs[:] = [_input_like(x, weight) for x in self.inputs]

    def probe_for(self, weight: Tensor) -> Tensor | None:
        """The probe to hand to the layer's op; None while it is switched off, or ``weight`` is frozen or a stand-in."""
        live = self.moments_on and weight.requires_grad and _fits(self.probe, weight) and not _transformed()
        return self.probe if live else None

    def channel_probe_for(self, weight: Tensor) -> Tensor | None:
        """The probe of the per-channel moments of a convolution's unpadded input; None like :meth:`probe_for`'s."""
        live = self.channels_on and weight.requires_grad and _fits(self.channel_probe, weight) and not _transformed()
        return self.channel_probe if live else None

    def live_captures(self) -> Iterator[Capture]:
        """The captures that have the probes: this one itself."""
        yield self

    def live_probes(self) -> Iterator[Tensor]:
        """The probes that are switched on."""
        for capture in self.live_captures():
            if capture.moments_on and capture.probe is not None:
                yield capture.probe
            if capture.channels_on and capture.channel_probe is not None:
                yield capture.channel_probe

    @property
    def gathered(self) -> bool:
        """Whether a backward pass left something since the last :meth:`clear`."""
        probe, other = self.probe, self.channel_probe
        found = (probe is not None and probe.grad is not None) or (other is not None and other.grad is not None)
        return found or bool(self.inputs)

    def keep(self, weight: Tensor, input: Tensor, output: Tensor) -> None:
        """Keep ``input`` until the step, if a backward pass reaches ``output`` and inputs are switched on."""
        if self.inputs_on and weight.requires_grad and output.requires_grad and not _transformed():
            kept = input.detach()
            output.register_hook(lambda gradient: self.inputs.append(kept))

    def count_samples(self, on: bool) -> None:
        """Choose whether backward passes count their samples. A compiled forward leaves those of its last call anyway."""
        self.samples_on = on

    def count(self, weight: Tensor, input: Tensor, output: Tensor, samples: int) -> None:
        """Count ``samples``, on the host, if a backward pass reaches ``output``; note whether it goes on to ``input``."""
        if torch.compiler.is_compiling():  # reads nothing that changes: no new graph for another count
            if torch.is_grad_enabled():
                self.samples, self.input_grad = samples, input.requires_grad
        elif weight.requires_grad and output.requires_grad and not _transformed():
            self.input_grad |= input.requires_grad
            if self.samples_on:
                output.register_hook(lambda gradient: self._add_samples(samples))

    def counted(self) -> Samples:
        """The samples counted since the last :meth:`clear`."""
        return Samples(self.samples, self.input_grad)

    def _add_samples(self, samples: int) -> None:
        self.samples += samples

    @property
    def moments(self) -> Tensor | None:
        """The second moment gathered since the last :meth:`clear`, ``[groups, blocks, size+1, size+1]``."""
        if self.probe is None or self.probe.grad is None:
            return None
        size = self.probe_shape[-1]
        return self.probe.grad.view(-1, self.blocks, size, size)

    @property
    def channel_moments(self) -> Tensor | None:
        """Sums, squares and counts per channel gathered since the last :meth:`clear`, ``[3, C]``."""
        return None if self.channel_probe is None else self.channel_probe.grad

    def __getstate__(self) -> dict[str, Any]:
        """A copy is empty, as gradients are not copied either, and switched off, until an optimizer switches it on."""
        return Capture(self.d_in, self.groups, self.channels).__dict__

    def clear(self) -> None:
        """Forget everything gathered so far."""
        for probe in (self.probe, self.channel_probe):
            if probe is not None:
                probe.grad = None
        self.inputs.clear()
        self.samples = 0


def _probe_like(probe: Tensor | None, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """``probe`` if it is of ``device`` and ``dtype``, else a new one that takes over its gradient."""
    if probe is not None and probe.device == device and probe.dtype == dtype:
        return probe
    fresh = torch.zeros((), device=device, dtype=dtype).expand(shape).requires_grad_()
    if probe is not None and probe.grad is not None:
        fresh.grad = probe.grad.to(device, dtype)
    return fresh


def _fits(probe: Tensor | None, weight: Tensor) -> bool:
    return probe is not None and probe.device == weight.device and probe.dtype == statistics_dtype(weight.dtype)


def _input_like(x: Tensor, weight: Tensor) -> Tensor:
    same = statistics_dtype(x.dtype) == statistics_dtype(weight.dtype)
    return x.to(weight.device, x.dtype if same else weight.dtype)


def _transformed() -> bool:
    """Whether the layer runs under ``torch.func`` or forward-mode differentiation, whose results reach no ``grad``."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0
