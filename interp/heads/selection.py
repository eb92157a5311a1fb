"""Choosing heads from their effects.

By fraction, count or false-discovery rate of the mean effect; by the paper's vote (arXiv
2402.19103, section 3.4: per prompt keep heads with E ≥ τ, rank by how many prompts keep them);
and random sets matched to a chosen one, layer by layer, for a null.
"""

from collections import Counter

import numpy as np
import torch

from interp.arguments import real_number, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.heads.effects import HeadEffects
from interp.heads.headset import Head, HeadSet


@checked
def select_heads(
    effects: HeadEffects,
    *,
    fraction: float | None = None,
    count: int | None = None,
    fdr: float | None = None,
    vote: float | None = None,
) -> HeadSet:
    """A head set from effects; see ``HeadEffects.select``."""
    ways = {"fraction": fraction, "count": count, "fdr": fdr}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise UserError(f"choose by exactly one of fraction, count and fdr, not {given or 'none'}")
    if vote is not None:
        vote = real_number("vote", vote)
    if fdr is not None:
        if vote is not None:
            raise UserError("a vote ranks heads: give it a fraction or a count, not an fdr")
        return _by_fdr(effects, fdr)
    n_all = effects.values[0].numel()
    size = (
        count_of_fraction(fraction or 0.0, n_all) if count is None else whole_number("count", count)
    )
    if not 0 <= size <= n_all:
        raise UserError(f"cannot choose {size} of {n_all} heads")
    ranked = effects.ranked() if vote is None else _by_vote(effects, vote)
    how = f"{size} largest mean effects" if vote is None else f"{size} most voted at E ≥ {vote}"
    return HeadSet(ranked[:size], effects.site, f"{how}, {effects.method}")


@checked
def count_of_fraction(fraction: float, n_heads: int) -> int:
    """How many heads a fraction of them is: rounded, at least one."""
    fraction = real_number("fraction", fraction)
    if not 0 < fraction <= 1:
        raise UserError(f"a fraction of the heads is above 0 and at most 1, not {fraction}")
    return max(1, round(fraction * n_heads))


def _by_fdr(effects: HeadEffects, fdr: float) -> HeadSet:
    if not 0 < real_number("fdr", fdr) < 1:
        raise UserError(f"a false-discovery rate lies between 0 and 1, not {fdr}")
    statistics = effects.statistics
    passed = (statistics.q_value <= fdr) & (statistics.mean > 0)
    heads = tuple(head for head in effects.ranked() if passed[head])
    return HeadSet(heads, effects.site, f"positive effect at FDR {fdr:g}, {effects.method}")


def _by_vote(effects: HeadEffects, threshold: float) -> tuple[Head, ...]:
    votes = (effects.probability >= threshold).sum(dim=0)
    # Ties, and heads without a vote, fall back on the mean of E.
    order = np.lexsort((-effects.probability.mean(dim=0).numpy().ravel(), -votes.numpy().ravel()))
    n_heads = effects.values.shape[2]
    return tuple((int(index) // n_heads, int(index) % n_heads) for index in order)


@checked
def random_head_sets(
    heads: HeadSet, n_layers: int, n_heads: int, n_sets: int, *, seed: int = 0
) -> tuple[HeadSet, ...]:
    """Random sets with as many heads in each layer as ``heads`` has, its own heads excluded.

    Where a layer has too few other heads (more than half of it is chosen), the set takes all of
    them, and as many as are missing at random from the nearest layers.

    Args:
        n_layers, n_heads: the model's layers, and its heads in each.

    Raises:
        UserError: more than half of all heads are chosen, so that no set can match.
    """
    if 2 * len(heads) > n_layers * n_heads:
        raise UserError(f"no random set can match {len(heads)} of {n_layers * n_heads} heads")
    per_layer = Counter(layer for layer, _ in heads)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Head, ...]:
        free = {
            layer: [(layer, head) for head in range(n_heads) if (layer, head) not in heads]
            for layer in range(n_layers)
        }
        drawn: list[Head] = []
        missing: list[int] = []
        for layer, size in sorted(per_layer.items()):
            found = _take_random(free[layer], size, generator)
            drawn += found
            missing += [layer] * (size - len(found))
        for layer in missing:
            nearest = min((at for at in free if free[at]), key=lambda at: (abs(at - layer), at))
            drawn += _take_random(free[nearest], 1, generator)
        return tuple(drawn)

    return tuple(
        HeadSet(draw(), heads.site, f"random, matched per layer, draw {index}")
        for index in range(n_sets)
    )


def _take_random(free: list[Head], size: int, generator: torch.Generator) -> list[Head]:
    """Up to ``size`` heads drawn from ``free``, which loses them."""
    order = torch.randperm(len(free), generator=generator)[:size].tolist()
    drawn = [free[place] for place in order]
    for head in drawn:
        free.remove(head)
    return drawn
