"""One second moment for several layers that are given one input."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lnb_kernels.moment_stream import join_moments


class SharedMoment:
    """The second moment of one input, computed by the first backward pass that needs it, for all layers that see the input.

    Give one object to every :func:`lnb_kernels.linear` call on the same tensor with probes of one shape and the same ``sample``
    and ``moment_dtype``. Each probe gets the gradient that it would get alone, whichever of the layers a backward pass reaches
    and in whatever order. The moment is kept from the first call that is reached to the last one, or until the graph is freed.
    Gradients of several probes may be one memory, without copies of it: a probe gets its own before autograd adds to it. Do not
    write to them in place.
    """

    def __init__(self) -> None:
        self._members = 0
        self._served: set[int] = set()
        self._moment: Tensor | None = None
        self._begun = False

    @property
    def is_open(self) -> bool:
        """Whether other calls should join: no backward pass has reached one of the members."""
        return not self._begun

    def join(self) -> int:
        """Count one more call in; returns its number."""
        self._members += 1
        return self._members - 1

    def take(self, member: int) -> Tensor | None:
        """The moment, once for each member; None if the member has to compute it, and to :meth:`offer` it."""
        if self._moment is None or member in self._served:  # the second: another backward pass through the same graph
            return None
        moment = self._moment
        self._served.add(member)
        if len(self._served) == self._members:
            self._forget()
        return moment

    def offer(self, member: int, moment: Tensor) -> None:
        """Keep what ``member`` computed for the others."""
        self._begun = True
        self._forget()
        if self._members > 1:
            self._moment = moment
            self._served.add(member)

    def _forget(self) -> None:
        self._moment = None
        self._served.clear()


class GradientMemory:
    """Whether the gradient of a probe lies in memory that it shares with those of other probes."""

    def __init__(self, probe: Tensor) -> None:
        self._probe = weakref.ref(probe)
        self._is_shared = False
        probe.register_hook(self._before_it_is_added)

    def view_of(self, moment: Tensor) -> Tensor:
        """``moment`` as a gradient to hand to autograd, which keeps it, and does not copy it, as nobody else has that object."""
        probe = self._probe()
        if probe is not None and probe.grad is None:
            self._is_shared = True
        return moment.detach()

    def _before_it_is_added(self, gradient: Tensor) -> None:
        """Autograd adds in place to a gradient that there is."""
        probe = self._probe()
        if probe is not None and probe.grad is not None and self._is_shared:
            join_moments()
            probe.grad = probe.grad.clone()
            self._is_shared = False


_MEMORY: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def gradient_memory(probe: Tensor) -> GradientMemory | None:
    """That of ``probe``, one for good; None for a probe that is no leaf of the graph, and keeps no gradient."""
    if not probe.is_leaf:
        return None
    found: GradientMemory | None = _MEMORY.get(probe)
    if found is None:
        found = _MEMORY[probe] = GradientMemory(probe)
    return found
