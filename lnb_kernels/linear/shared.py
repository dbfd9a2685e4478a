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
    Gradients of several probes may be one memory, without copies of it. What a later backward pass adds to them is added once,
    where all that it adds to are one memory; a probe gets a memory of its own before anything else is added to it. Do not write
    to them in place.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[Tensor, Tensor]] = []
        self._added = 0
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
        self._sums.clear()
        self._added = 0
        if self._members > 1:
            self._moment = moment
            self._served.add(member)

    def added_to(self, former: Tensor, moment: Tensor) -> Tensor:
        """``former + moment``, computed once for all members whose gradient so far is the memory ``former``.

        Args:
            former: the gradient of a member's probe before this backward pass.
            moment: what that was given in this pass.
        """
        self._added += 1
        total = next((total for other, total in self._sums if _are_one(other, former)), None)
        if total is None:
            total = former + moment
            self._sums.append((former, total))
        if self._added >= self._members:
            self._sums.clear()
        return total

    def _forget(self) -> None:
        self._moment = None
        self._served.clear()


def _are_one(one: Tensor, other: Tensor) -> bool:
    """Whether both are all of one memory."""
    same: bool = one.untyped_storage()._cdata == other.untyped_storage()._cdata
    return same


class GradientMemory:
    """Whether the gradient of a probe lies in memory that it shares with those of other probes."""

    def __init__(self, probe: Tensor) -> None:
        self._probe = weakref.ref(probe)
        self._is_shared = False
        self._given: list[tuple[weakref.ref[SharedMoment], int]] = []  # the last moments, and their memory
        probe.register_hook(self._before_it_is_added)

    def view_of(self, moment: Tensor, shared: SharedMoment) -> Tensor:
        """``moment`` as a gradient to hand to autograd, which keeps it, and does not copy it, as nobody else has that object."""
        probe = self._probe()
        if probe is not None and probe.grad is None:
            self._is_shared = True
        self._given = [*self._given[-1:], (weakref.ref(shared), moment.untyped_storage()._cdata)]
        return moment.detach()

    def _before_it_is_added(self, gradient: Tensor) -> Tensor | None:
        """Autograd adds in place to a gradient that there is, and keeps one that it is given where there is none."""
        probe, given = self._probe(), self._given
        self._given = []
        if probe is None or probe.grad is None or not self._is_shared:
            return None
        join_moments()
        former, probe.grad = probe.grad, None
        if len(given) == 1 and gradient.untyped_storage()._cdata == given[0][1]:  # else it is a sum already
            shared = given[0][0]()
            if shared is not None:
                return shared.added_to(former, gradient).detach()
        probe.grad = former.clone()
        self._is_shared = False
        return None


_MEMORY: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def gradient_memory(probe: Tensor) -> GradientMemory | None:
    """The state of ``probe``, always the same one; None for a probe that is no leaf of the graph, and keeps no gradient."""
    if not probe.is_leaf:
        return None
    found: GradientMemory | None = _MEMORY.get(probe)
    if found is None:
        found = _MEMORY[probe] = GradientMemory(probe)
    return found
