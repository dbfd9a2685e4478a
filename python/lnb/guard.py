"""Interrupted steps: Ctrl-C waits until a step has ended, and a step that broke off is not repeated without notice."""

from __future__ import annotations

import threading
from _signal import SIGINT, default_int_handler, getsignal, signal  # type: ignore[import-not-found]
from types import FrameType

from torch import Tensor, nn

# From what the module signal wraps: its conversions to enumerations take two microseconds a call, four times a step.


class _HeldInterrupt:
    """Ctrl-C, held back while a step writes; one object of the process, as its handler is."""

    def __init__(self) -> None:
        self._holding = False
        self._caught = False

    def hold(self) -> None:
        """From now on, note Ctrl-C instead of raising."""
        in_main = threading.get_ident() == threading.main_thread().ident
        self._caught = False
        self._holding = True
        if in_main and getsignal(SIGINT) is default_int_handler:
            signal(SIGINT, self._note)

    def release(self) -> bool:
        """Raise again from now on; whether Ctrl-C came in the meantime."""
        self._holding = False
        if getsignal(SIGINT) == self._note:
            signal(SIGINT, default_int_handler)
        return self._caught

    def _note(self, number: int, frame: FrameType | None) -> None:
        signal(SIGINT, default_int_handler)  # the second one acts at once
        if not self._holding:
            raise KeyboardInterrupt
        self._caught = True


_interrupt = _HeldInterrupt()


class StepGuard:
    """Surrounds the part of a step that writes.

    A first Ctrl-C in it takes effect when the step is complete (in the main thread, where Python's own handler is in
    place); a second one at once. Where that or any other exception breaks the step off, the averages hold its gradients
    and the parameters may not have moved: :meth:`repeats` refuses to count the same gradients a second time.
    """

    def __init__(self) -> None:
        self._next: list[nn.Parameter] = []
        self._open: list[nn.Parameter] | None = None
        self._gradients: list[tuple[Tensor | None, int]] | None = None  # with their versions, when the step broke off
        self._complete = False

    def repeats(self) -> bool:
        """Whether the last step was complete although it raised an exception, and these are its gradients.

        Raises:
            RuntimeError: it was not complete, and these are its gradients.
        """
        if self._open is None:
            return False
        if self._gradients is not None and not any(map(_is_still, self._open, self._gradients)):
            self.forget()
            return False
        if self._complete:
            self.forget()
            return True
        raise RuntimeError(
            "step(): the step before was broken off after it had begun to write, and its gradients are still here. They are "
            "in the averages of some or all parameters already, and some or all parameters have not moved; to repeat the "
            "step would count them twice. Nothing was changed. Go on with new gradients (zero_grad(), then forward and "
            "backward pass), or load a saved state"
        )

    def forget(self) -> None:
        """Forget the broken step: its gradients are gone, or a state was loaded."""
        self._open = None
        self._gradients = None
        self._complete = False

    def writing(self, parameters: list[nn.Parameter]) -> StepGuard:
        """The context in which a step of ``parameters`` writes."""
        self._next = parameters
        return self

    def __enter__(self) -> None:
        _interrupt.hold()
        self._complete = False
        self._gradients = None
        self._open = self._next

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._complete = kind is None
        interrupted = _interrupt.release()
        if kind is None and not interrupted:
            self.forget()
            return
        self._gradients = [(p.grad, -1 if p.grad is None else p.grad._version) for p in self._open or ()]
        if interrupted:
            raise KeyboardInterrupt


def _is_still(parameter: nn.Parameter, before: tuple[Tensor | None, int]) -> bool:
    gradient, version = before
    return gradient is not None and parameter.grad is gradient and gradient._version == version
