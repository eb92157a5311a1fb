"""How many resamples are held at once: memory follows a limit, not the number of units.

A resample of g groups and u units takes g · u numbers. Units are resampled by the same draws
whoever else is there, and draws come from one stream however many are taken at a time, so that
neither the blocks of units nor those of resamples change a number.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

RESAMPLE_BYTES = 256 * 2**20
"""For the resamples that are held at once."""
_NUMBER = 8


def units_at_once(n_groups: int, batch: int, *, copies: int = 1) -> int:
    """How many units fit with ``batch`` resamples of so many groups; at least one."""
    return max(1, RESAMPLE_BYTES // (_NUMBER * copies * max(1, n_groups) * batch))


def resamples_at_once(n_numbers: int, most: int) -> int:
    """How many resamples of so many numbers each fit, up to ``most``; at least one."""
    return max(1, min(most, RESAMPLE_BYTES // (_NUMBER * max(1, n_numbers))))


def in_turns(total: int, size: int) -> Iterator[int]:
    """How many to do in each turn."""
    for begin in range(0, total, size):
        yield min(size, total - begin)


def group_draws(
    n_groups: int, n_resamples: int, size: int, generator: np.random.Generator
) -> Iterator[Int[np.ndarray, "resample group"]]:
    """How often each group is in each resample of as many groups, ``size`` resamples at a time."""
    for now in in_turns(n_resamples, size):
        yield generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), now)
