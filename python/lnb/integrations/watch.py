"""A training that is watched: the figures of every layer, every so many steps, for ``lnb watch``, TensorBoard, or another log.

    from lnb.integrations.watch import Watch

    with Watch(optimizer, "runs/first", every=50) as watch:
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            watch.note(loss=loss)  # if it is to stand beside the figures
            optimizer.step()  # every 50th is logged

and, in another terminal, ``lnb watch runs/first``. The figures are those of ``optimizer.diagnostics(layers=True, inputs=True)``:
gain, condition of the inputs, age of the statistics, rank of the inputs, and dead inputs. Trainers need nothing more,
because the optimizer itself calls the watch; where one wraps the optimizer, hand over the one inside
(``AcceleratedOptimizer.optimizer``). Steps that are replayed from CUDA graphs (:func:`lnb.graphed_step`) call nothing: call
``watch.after_step()`` after each.

A step that is not logged costs a remainder of two integers. One that is logged waits for the device, and computes
eigenvalues on the CPU.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from lnb.config import check_count
from lnb.optimizer import LNB
from lnb.reports.watch_file import NAME, Record, WatchFile


class ScalarWriter(Protocol):
    """What is needed of another log, as ``torch.utils.tensorboard.SummaryWriter`` has it."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> Any:
        """Take one figure."""


class Watch:
    """Logs the figures of ``optimizer`` after every ``every``-th step, until it is closed.

    In a training of several ranks only rank 0 writes; on the others this does nothing.

    Args:
        optimizer: the :class:`lnb.LNB`.
        folder: gets the file ``watch.jsonl``, which ``lnb watch`` shows, and TensorBoard's. It is made if it is not there; a run
            that goes on adds to what it finds.
        every: steps from one log to the next.
        inputs: include rank, condition and dead inputs, which need eigenvalues.
        tensorboard: write for TensorBoard, too; None where it is installed.
        writers: other logs, which get ``add_scalar(name, value, step)`` for each figure. Weights & Biases needs none: its
            ``wandb.init(sync_tensorboard=True)`` takes TensorBoard's.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the folder holds another kind of ``watch.jsonl``.
        ImportError: ``tensorboard=True``, and it is not installed.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        optimizer: LNB,
        folder: str | os.PathLike[str],
        every: int = 50,
        *,
        inputs: bool = True,
        tensorboard: bool | None = None,
        writers: Iterable[ScalarWriter] = (),
    ) -> None:
        if not isinstance(optimizer, LNB):
            raise TypeError(
                f"optimizer must be an lnb.LNB, not {type(optimizer).__name__}; if that wraps one, pass the one inside: "
                f"optimizer.optimizer"
            )
        check_count("every", every)
        self._optimizer, self._every, self._inputs = optimizer, every, inputs
        self._noted: dict[str, float | Tensor] = {}
        self._logged = 0  # the latest step
        self._file: WatchFile | None = None
        self._writers = list(writers)
        self._own: Any = None
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self._file = WatchFile(path / NAME, [tracked.layer.name for tracked in optimizer.tracked()])
        self._own = None if tensorboard is False else _summary_writer(path, required=tensorboard is True)
        if self._own is not None:
            self._writers.append(self._own)
        self._hook = optimizer.register_step_post_hook(lambda *_: self.after_step())

    def note(self, **values: float | Tensor) -> None:
        """Have ``values``, numbers or tensors of one element, stand beside the figures of the next log. Reads no tensor."""
        for name, value in values.items():
            self._noted[name] = value.detach() if isinstance(value, Tensor) else value

    def after_step(self) -> None:
        """Log a step that is due, once. The optimizer calls it; call it yourself after steps that CUDA graphs replay."""
        step = self._optimizer.step_index
        if step % self._every == 0 and step != self._logged and self._file is not None and not _capturing():
            self.log()

    def log(self) -> None:
        """Log now."""
        if self._file is None:
            return
        run: dict[str, float] = {name: float(value) for name, value in self._noted.items()}
        layers: dict[str, dict[str, float]] = {}
        for name, value in self._optimizer.diagnostics(layers=True, inputs=self._inputs).items():
            if name.startswith("layer/"):
                layer, _, figure = name.removeprefix("layer/").rpartition("/")
                layers.setdefault(layer, {})[figure] = float(value)
            else:
                run[name] = float(value)
        self._logged = self._optimizer.step_index
        record = Record(self._logged, time.time(), run, layers)
        try:
            self._file.write(record)
            for writer in self._writers:
                _add(writer, record)
        except OSError as error:
            warnings.warn(f"the training goes on unwatched: {self._file.path} cannot be written: {error}", stacklevel=2)
            self.close()

    def close(self) -> None:
        """Log no more."""
        if self._file is not None:
            self._hook.remove()
            self._file = None
            if self._own is not None:
                self._own.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _add(writer: ScalarWriter, record: Record) -> None:
    for name, value in record.run.items():
        writer.add_scalar(f"lnb/{name}", value, record.step)
    for layer, figures in record.layers.items():
        for figure, value in figures.items():
            writer.add_scalar(f"lnb/layer/{layer}/{figure}", value, record.step)


def _summary_writer(folder: Path, required: bool) -> Any:
    """TensorBoard's writer; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if required:
            raise ImportError("tensorboard=True: TensorBoard is not installed: pip install tensorboard") from error
        return None
    return SummaryWriter(str(folder))


def _capturing() -> bool:
    """Whether a CUDA graph is being captured, into which no read of the host can go."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
