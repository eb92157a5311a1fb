"""The number of resamples in memory at once, which follows a limit and not the number of units.

A resample of g groups and u units takes g · u numbers. All units use the same draws, and draws come
from one stream, so that the block sizes do not change the results.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

RESAMPLE_BYTES = 256 * 2**20
"""Memory for the resamples, in bytes."""
_NUMBER = 8


def units_at_once(n_groups: int, batch: int, *, copies: int = 1) -> int:
    """The number of units (at least one) that fit with ``batch`` resamples of ``n_groups``."""
    return max(1, RESAMPLE_BYTES // (_NUMBER * copies * max(1, n_groups) * batch))


def resamples_at_once(n_numbers: int, most: int) -> int:
    """The number of resamples, from 1 to ``most``, that fit with ``n_numbers`` numbers each."""
    return max(1, min(most, RESAMPLE_BYTES // (_NUMBER * max(1, n_numbers))))


def in_turns(total: int, size: int) -> Iterator[int]:
    """The sizes of the blocks that ``total`` is divided into."""
    for begin in range(0, total, size):
        yield min(size, total - begin)


def group_draws(
    n_groups: int, n_resamples: int, size: int, *, generator: np.random.Generator
) -> Iterator[Int[np.ndarray, "resample group"]]:
    """The count of each group in each resample of ``n_groups`` groups, ``size`` at a time."""
    for n_now in in_turns(n_resamples, size):
        yield generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), n_now)
