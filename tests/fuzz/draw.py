"""Random choices of a case: sizes, dtypes, layouts, magnitudes. Everything drawn is text that builds it."""

from __future__ import annotations

import random
from collections.abc import Sequence

DTYPES = ("torch.float32", "torch.float64", "torch.bfloat16", "torch.float16")
SCALES = (1e-40, 1e-30, 1e-20, 1e-10, 1e-3, 1e3, 1e10, 1e20, 1e30)
LAYOUTS = ("transposed", "swapped", "strided", "padded", "sliced", "channels_last")
VIEWS = ("negated", "conjugated", "expanded")
KINDS = ("inference", "subclass", "wrapped")
SPIKES = ('float("nan")', 'float("inf")', '-float("inf")')


def is_wide(dtype: str) -> bool:
    """Whether arithmetic with it is in float64."""
    return dtype == "torch.float64"


class Draw:
    """The random numbers of one case, and what may be out of the ordinary in it.

    Attributes:
        plain: every tensor is contiguous, of ordinary size and kind: for cases whose point is elsewhere.
        unusual: names of what was drawn that a function may refuse, such as an inference tensor.
        spikes: whether an entry is NaN or infinite.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.plain = self.chance(0.25)
        self.unusual: set[str] = set()
        self.spikes = False
        self._kind = self.pick(*KINDS)  # one in a case: they do not mix in PyTorch itself

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def pick(self, *choices: object) -> str:
        """One of them, as text."""
        return str(self.random.choice(choices))

    def number(self, *choices: float) -> float:
        """One of them, or sometimes a number in [0, 1)."""
        return self.random.choice(choices) if self.chance(0.8) else round(self.random.random(), 6)

    def seed(self) -> int:
        """Of a tensor."""
        return self.random.randrange(1 << 31)

    def size(self, *usual: int) -> int:
        """A dimension: mostly one of ``usual`` (by default small), sometimes an awkward one."""
        usual = usual or (1, 2, 3, 4, 7, 8, 16, 17, 33)
        awkward = (0, 1, 7, 127, 129)
        return self.random.choice(usual if self.chance(0.85) else awkward)

    def shape(self, dimensions: int | None = None, entries: int = 20_000) -> tuple[int, ...]:
        """Any shape, of about so many entries at most."""
        if dimensions is None:
            dimensions = self.random.choice((0, 1, 1, 2, 2, 2, 3, 4))
        if dimensions and self.chance(0.01):
            return (*(1,) * (dimensions - 1), 2049)
        sizes = [self.size() for _ in range(dimensions)]
        for i in range(dimensions):
            others = 1
            for j, size in enumerate(sizes):
                others *= max(size, 1) if i != j else 1
            if others * sizes[i] > entries:
                sizes[i] = self.random.choice((1, 2, 3))
        return tuple(sizes)

    def dtype(self, *choices: str) -> str:
        """float32 about half of the time."""
        return self.random.choice(choices or (*DTYPES, "torch.float32", "torch.float32"))

    def scale(self) -> float:
        """A magnitude, 1 most of the time."""
        return 1.0 if self.plain or self.chance(0.75) else self.random.choice(SCALES)

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        *,
        make: str = "normal",
        scale: float | None = None,
        written: bool = False,
        views: bool = True,
        spikes: bool = True,
    ) -> str:
        """The text of a tensor.

        Args:
            shape, dtype: its own.
            make: the builder of its values.
            scale: its magnitude; None to draw one.
            written: the call writes to it.
            views: layouts and kinds other than contiguous may be drawn.
            spikes: so may NaN and inf.
        """
        magnitude = self.scale() if scale is None else scale
        text = f"{make}({self.seed()}, {tuple(shape)}, {dtype}" + ("" if magnitude == 1 else f", {magnitude!r}") + ")"
        if self.plain:
            return text
        if spikes and self.chance(0.02):
            self.spikes = True
            text = f"spiked({text}, {self.random.randrange(1000)}, {self.pick(*SPIKES)})"
        return self.arranged(text, dtype, written) if views else text

    def arranged(self, text: str, dtype: str, written: bool = False) -> str:
        """The same tensor in another layout, seen through a view, or of another kind."""
        if self.plain:
            return text
        if self.chance(0.35):
            text = f"{self.pick(*LAYOUTS)}({text})"
        if self.chance(0.06):
            # PyTorch itself loses negation bits beside tensors that answer its dispatcher
            view = "expanded" if self._kind == "wrapped" else self.pick(*VIEWS)
            if view == "conjugated" and dtype not in ("torch.float32", "torch.float64"):
                view = "negated"
            if view == "expanded" and written:
                self.unusual.add("shares entries")
            text = f"{view}({text})"
        if self.chance(0.04):
            self.unusual.add(self._kind)
            text = f"{self._kind}({text})"
        return text

    def flag(self) -> str:
        """``ok``: mostly None, sometimes False."""
        return self.random.choice(("None", "None", "None", "torch.tensor(True)", "torch.tensor(False)"))
