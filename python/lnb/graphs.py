"""Training steps as CUDA graphs: forward, backward and step are captured once and replayed.

What a step launches depends on which layers it refreshes, so there is a graph for each set of such layers: one for ordinary
steps, one for refreshes, or one for each slice of a staggered refresh. Step counts, averages and radii live on the device;
the schedule of refreshes on the host, which goes on counting while graphs are replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from lnb.optimizer import LNB

Loss = Callable[..., Tensor]


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Run what was captured once more."""


class Graphs(Protocol):
    """How graphs are made: :class:`CudaGraphs`, or what stands for it in a test."""

    def new(self) -> Any:
        """An empty graph."""

    def capture(self, graph: Any) -> AbstractContextManager[Any]:
        """Inside, operations are recorded in the graph instead of being run."""

    def aside(self) -> AbstractContextManager[Any]:
        """Inside, operations run at once, in order with all others, on a stream that a later capture does not meet."""


class CudaGraphs:
    """CUDA graphs of PyTorch, which share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def new(self) -> torch.cuda.CUDAGraph:
        """An empty graph."""
        return torch.cuda.CUDAGraph()

    def capture(self, graph: torch.cuda.CUDAGraph) -> AbstractContextManager[Any]:
        """Capture on a stream of its own, as PyTorch does."""
        return torch.cuda.graph(graph, pool=self._pool)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a side stream: autograd goes on where it began, and a capture must not meet the default stream."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def graphed_step(optimizer: LNB, loss: Loss, example: Sequence[Tensor]) -> GraphedStep:
    """A training step that is replayed from CUDA graphs: ``value = step(*batch)``.

    Steps run as usual until features have settled (``refresh_every`` steps), and so does the first step of every kind after
    that; the second is captured. Every call makes exactly one step, with the results of the usual one.

    Learning rates become tensors on the device, to which PyTorch's schedulers write; weight decay and other settings are
    captured as they are. ``diagnostics()`` goes on counting steps, and its figures of each layer are those of the last step.

    Args:
        optimizer: the :class:`lnb.LNB` of the model.
        loss: ``loss(*batch)`` runs the model and returns a scalar; nothing else is captured.
        example: tensors like those of a batch, on the device of the model: their memory is what the graphs read.

    Raises:
        ValueError: the optimizer's settings wait for the device, measure time, or add over ranks; or the example is not on the
            parameters' one device. On a device without graphs, pass nothing through this function and call ``step()``.
    """
    device = _device_of(optimizer)
    if device.type != "cuda":
        raise ValueError(
            f"graphed_step: the model is on {device}; CUDA graphs need it on a CUDA device. Call step() itself there"
        )
    return GraphedStep(optimizer, loss, example, CudaGraphs())


class GraphedStep:
    """The step that :func:`graphed_step` returns.

    Args:
        optimizer, loss, example: as there.
        graphs: how graphs are made.
    """

    def __init__(self, optimizer: LNB, loss: Loss, example: Sequence[Tensor], graphs: Graphs) -> None:
        self._optimizer, self._loss, self._graphs = optimizer, loss, graphs
        device = _device_of(optimizer)
        _require_capturable(optimizer)
        for i, value in enumerate(example):
            if not isinstance(value, Tensor) or value.device != device:
                where = value.device if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"graphed_step: example[{i}] is on {where}; it must be a tensor on {device}")
        self._inputs = [value.detach().clone() for value in example]
        self._captured: dict[tuple[int, ...], tuple[Graph, Tensor]] = {}
        self._seen: set[tuple[int, ...]] = set()
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64).to(device)

    def __call__(self, *batch: Tensor) -> Tensor:
        """Make one step on ``batch``, which has the example's shapes and dtypes; returns the loss ``[]``, of memory that the
        next step writes to.

        Raises:
            ValueError: the batch does not have them; no step was made.
        """
        self._take(batch)
        kind = self._optimizer.gathering
        if self._optimizer.step_index < self._optimizer.config.refresh_every or kind not in self._seen:
            self._seen.add(kind)
            with self._graphs.aside():
                return self._step()
        if kind not in self._captured:
            graph = self._graphs.new()
            with self._graphs.capture(graph), self._optimizer.captured():
                value = self._step()  # the host counts this step; the device makes it below
            self._captured[kind] = graph, value
        else:
            self._optimizer.count_step()
        graph, value = self._captured[kind]
        graph.replay()
        return value

    def _take(self, batch: Sequence[Tensor]) -> None:
        if len(batch) != len(self._inputs):
            raise ValueError(f"graphed_step: the batch has {len(batch)} tensors; the example has {len(self._inputs)}")
        for i, (value, own) in enumerate(zip(batch, self._inputs, strict=True)):
            if value.shape != own.shape or value.dtype != own.dtype:
                raise ValueError(
                    f"graphed_step: tensor {i} of the batch is {value.dtype} {tuple(value.shape)}; the example has {own.dtype} "
                    f"{tuple(own.shape)}. Make another graphed step for other shapes, or drop the last, smaller batch"
                )
        for value, own in zip(batch, self._inputs, strict=True):
            own.copy_(value)

    def _step(self) -> Tensor:
        self._optimizer.zero_grad()
        value = self._loss(*self._inputs)
        value.backward()
        self._optimizer.step()
        return value.detach()


def _device_of(optimizer: LNB) -> torch.device:
    devices: set[torch.device] = {parameter.device for group in optimizer.param_groups for parameter in group["params"]}
    if len(devices) != 1:
        raise ValueError(f"graphed_step: parameters are on {sorted(map(str, devices))}; they must be on one device")
    return devices.pop()


def _require_capturable(optimizer: LNB) -> None:
    config = optimizer.config
    reasons = {
        "strict=True": optimizer.strict,
        f"max_overhead={config.max_overhead}": config.max_overhead is not None,
        f"sample_every={config.sample_every}": config.sample_every > 1,
        f"solver={config.solver!r}": config.keeps_inputs,
        "several ranks": torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1,
    }
    for setting, holds in reasons.items():
        if holds:
            raise ValueError(
                f"graphed_step: {setting} needs the host in every step, which a CUDA graph leaves out; call step() itself"
            )
