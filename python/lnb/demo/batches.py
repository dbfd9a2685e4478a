"""The order of the training examples: minibatches as a pure function of seed and step."""

from __future__ import annotations

import torch
from torch import Tensor


class Batcher:
    """Shuffled minibatch indices, without worker processes and without state.

    Each epoch is a fresh permutation, drawn from a generator seeded by ``seed`` and the epoch; the rest of an epoch
    that does not fill a batch is left out. So the step number alone is the position in the data order.

    Args:
        examples: number of examples, >= 1.
        batch_size: examples per step, >= 1; more than there are means all of them, in their order.
        seed: the run's seed.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        if examples < 1 or batch_size < 1:
            raise ValueError(f"examples={examples} and batch_size={batch_size} must be at least 1")
        self.examples = examples
        self.batch_size = min(batch_size, examples)
        self.per_epoch = examples // self.batch_size
        self._seed = seed
        self._epoch = -1
        self._order = torch.arange(examples)

    def indices(self, step: int) -> Tensor:
        """The examples of step ``step`` (counted from 0), ``[batch_size]`` int64."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch and self.batch_size < self.examples:
            # Two seeds never share an epoch's permutation: the pair is hashed into the generator's 64-bit seed.
            generator = torch.Generator().manual_seed((self._seed * 0x9E3779B97F4A7C15 + epoch) % 2**63)
            self._order = torch.randperm(self.examples, generator=generator)
            self._epoch = epoch
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]
