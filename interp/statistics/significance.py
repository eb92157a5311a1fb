"""Intervals, p-values and false-discovery rates of mean effects, for any axes.

Prompts about the same subject are not independent, so effects are averaged over the prompts of a
*group* (a subject, a pair of names), and groups are resampled. For each unit (a head, a layer, a
head at a span, …):

* a percentile bootstrap interval of the mean over groups;
* a two-sided sign-flip test: p is the share of random sign flips of the groups that give a mean at
  least as large;
* Benjamini–Hochberg q-values over all units.

Where the groups come from several *strata* of fixed size (relations that are pooled), they are
resampled within each, so that every resample has as many of each as the data. Sign flips do not
change how many there are, and need no strata.

With n groups a sign-flip p-value is at least 2/2ⁿ, so a minimum number of groups is required. A NaN
is an effect that was not measured (padding, a unit that was not run): it is left out of the means,
and a unit with too few remaining groups has a mean, but no interval and no p-value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.lazy import stats
from interp.precision import PRECISIONS
from interp.statistics.resampling import resamples_at_once, units_at_once

MINIMUM_GROUPS = 6
BOOTSTRAP_RESAMPLES = 2000
SIGN_FLIPS = 20_000
BOOTSTRAP_BATCH, SIGN_FLIP_BATCH = 100, 200
"""Resamples in memory at once; ``resampling`` limits the number of units."""
RESOLUTION = PRECISIONS[torch.float32].resolution
"""Effects in float32 below this (logits) are rounding errors and count as zero. Models in bfloat16
usually have their effects computed in float32 too."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class EffectStatistics:
    """Per unit: mean over groups, its interval, p-value and q-value; NaN where there is none."""

    mean: Float[np.ndarray, "..."]
    ci_low: Float[np.ndarray, "..."]
    ci_high: Float[np.ndarray, "..."]
    p_value: Float[np.ndarray, "..."]
    q_value: Float[np.ndarray, "..."]


def group_order(groups: Sequence[str], n_prompts: int, what: str = "groups") -> np.ndarray:
    """The index of each prompt's group, in order of first appearance."""
    if len(groups) != n_prompts:
        raise UserError(f"{n_prompts} prompts but {len(groups)} {what}")
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    return np.array([order[group] for group in groups], dtype=int)


def group_means(
    values: Float[Tensor, "prompt ..."], groups: Sequence[str], *, what: str = "groups"
) -> Float[np.ndarray, "group ..."]:
    """Effects averaged over each group's prompts, groups in order of first appearance.

    NaNs are left out; a group without any value is NaN. ``what`` names the groups in a message.
    """
    index = torch.from_numpy(group_order(groups, len(values), what))
    data = values.double().cpu()
    present = ~torch.isnan(data)
    shape = (int(index.max()) + 1, *values.shape[1:])
    sums = torch.zeros(shape, dtype=torch.float64).index_add_(0, index, data.nan_to_num(nan=0.0))
    counts = torch.zeros(shape, dtype=torch.float64).index_add_(0, index, present.double())
    return (sums / counts).numpy()


def mean_over_groups(
    values: Float[Tensor, "prompt ..."], groups: Sequence[str]
) -> Float[np.ndarray, "..."]:
    """The mean over groups of `group_means`; NaN where no group has a value."""
    means = group_means(values, groups)
    counts = (~np.isnan(means)).sum(axis=0)
    empty = np.full(means.shape[1:], np.nan)
    return np.divide(np.nansum(means, axis=0), counts, out=empty, where=counts > 0)


def resolved_means(
    values: Float[Tensor, "prompt ..."],
    groups: Sequence[str],
    *,
    resolution: float = RESOLUTION,
    what: str = "groups",
) -> Float[np.ndarray, "group ..."]:
    """`group_means`, with zero for what is below the resolution."""
    units = group_means(values, groups, what=what)
    return np.where(np.abs(units) < resolution, 0.0, units)


def effect_statistics(
    values: Float[Tensor, "prompt ..."],
    groups: Sequence[str],
    *,
    strata: Sequence[str] = (),
    seed: int = 0,
    resolution: float = RESOLUTION,
    what: str = "groups",
) -> EffectStatistics:
    """Interval, p- and q-value of every unit's mean effect.

    Args:
        groups: the group of each prompt.
        strata: the stratum of each prompt, within which groups are resampled; by default one.
        resolution: a group's mean effect below this, in the metric's unit, counts as zero.
        what: names the groups in a message.

    Raises:
        UserError: fewer than ``MINIMUM_GROUPS`` groups, a group in two strata, or an infinite
            effect.
    """
    if bool(torch.isinf(values).any()):
        raise UserError("some effects are infinite: there is no mean to test")
    units = resolved_means(values, groups, resolution=resolution, what=what)
    if len(units) < MINIMUM_GROUPS:
        raise UserError(
            f"{len(units)} {what} are too few for statistics: at least {MINIMUM_GROUPS} needed"
        )
    stratum = strata_of_groups(strata, groups)
    shape, flat = units.shape[1:], units.reshape(len(units), -1)
    mean, low, high, p_value = (np.full(flat.shape[1], np.nan) for _ in range(4))
    patterns, which = np.unique(~np.isnan(flat), axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        # Units measured in the same groups are resampled together.
        every = np.flatnonzero(which.reshape(-1) == number)
        size = units_at_once(int(pattern.sum()), SIGN_FLIP_BATCH, copies=2)
        for begin in range(0, len(every), size):
            columns = every[begin : begin + size]
            there = flat[np.ix_(pattern, columns)]
            if len(there):
                mean[columns] = there.mean(axis=0)
            if len(there) >= MINIMUM_GROUPS:
                low[columns], high[columns] = interval_within(there, stratum[pattern], seed=seed)
                p_value[columns] = _sign_flip(there, seed)
    arrays = (array.reshape(shape) for array in (mean, low, high, p_value, q_values(p_value)))
    return EffectStatistics(*arrays)


def q_values(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Benjamini–Hochberg q-values; NaN p-values are ignored and stay NaN."""
    found = np.full(p_values.shape, np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        found[tested] = stats.false_discovery_control(p_values[tested])
    return found


def bootstrap_interval(
    data: tuple[np.ndarray, ...], statistic: Any, *, seed: int, batch: int, **options: Any
) -> tuple[Any, Any]:
    """The percentile interval of a statistic over the first axis, by ``scipy.stats.bootstrap``.

    Args:
        batch: resamples in memory at once.
    """
    result = stats.bootstrap(
        data,
        statistic,
        method="percentile",
        n_resamples=BOOTSTRAP_RESAMPLES,
        batch=batch,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
        **options,
    )
    return result.confidence_interval.low, result.confidence_interval.high


def strata_of_groups(strata: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """The number of each group's stratum, groups in order of first appearance; 0 without strata.

    Args:
        strata, groups: of each prompt.

    Raises:
        UserError: a group in two strata, or another number of strata than of prompts.
    """
    if not strata:
        return np.zeros(len(set(groups)), dtype=int)
    of_prompt, group = group_order(strata, len(groups), "strata"), group_order(groups, len(groups))
    found = np.zeros(int(group.max()) + 1, dtype=int)
    found[group] = of_prompt
    if (found[group] != of_prompt).any():
        raise UserError("a group lies in two strata: groups are resampled within one")
    return found


def interval_within(
    units: Float[np.ndarray, "group unit"], strata: np.ndarray, *, seed: int
) -> tuple[Any, Any]:
    """The percentile interval of the mean over groups, which are resampled within their strata.

    Args:
        strata: the number of each group's stratum. A stratum of one group is the same in every
            resample.
    """
    parts = [units[strata == number] for number in np.unique(strata)]
    if len(parts) == 1:
        return bootstrap_interval((units,), np.mean, seed=seed, batch=BOOTSTRAP_BATCH)
    sizes = [len(part) for part in parts]

    def mean(*drawn: np.ndarray, axis: int) -> np.ndarray:
        sums = [part.mean(axis=axis) * size for part, size in zip(drawn, sizes, strict=True)]
        return np.sum(sums, axis=0) / len(units)

    # scipy draws no sample of one: two equal ones have the same mean.
    data = tuple(part if len(part) > 1 else np.repeat(part, 2, axis=0) for part in parts)
    return bootstrap_interval(data, mean, vectorized=True, seed=seed, batch=BOOTSTRAP_BATCH)


def _sign_flip(units: Float[np.ndarray, "group unit"], seed: int) -> Float[np.ndarray, " unit"]:
    """The two-sided sign-flip p-value of every unit's mean, by ``scipy.stats.permutation_test``.

    scipy flips the signs of a vector of ones, the same for all units, and each draw is applied to
    all units at once.
    """
    constant = np.all(units == 0, axis=0)

    def mean_with(signs: Float[np.ndarray, "*draw group"], axis: int) -> np.ndarray:
        # Every element is added up group by group, unlike in a matrix product: a flipped zero
        # changes no bit, and a draw that ties with the observed mean counts as one.
        return np.einsum("...g,gu->...u", signs, units) / len(units)

    result = stats.permutation_test(
        (np.ones(len(units)),),
        mean_with,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=SIGN_FLIP_BATCH,
        rng=np.random.default_rng(seed),
    )
    # The p-value of a unit without any effect is 1, whatever the rounding.
    return np.where(constant, 1.0, np.clip(result.pvalue, 0.0, 1.0))


@checked
def mean_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[str], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over prompts with a percentile interval from resampling groups.

    All prompts have the same weight; a resample takes groups with all their prompts. One group
    leaves nothing to resample: both ends are the mean, which says nothing of how exact it is.
    """
    return mean_of_parts_interval(values, [""] * len(values), groups, seed=seed)


@checked
def mean_of_parts_interval(
    values: Sequence[float] | np.ndarray,
    parts: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The mean over parts of each part's mean, with a percentile interval from resampling groups.

    All parts have the same weight, whatever their size. A resample takes groups with all their
    prompts; a part of which it has none does not count in it.
    """
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return float("nan"), float("nan"), float("nan")
    index, part = group_order(groups, len(data)), group_order(parts, len(data))
    n_parts = int(part.max()) + 1
    sums, counts = np.zeros((2, int(index.max()) + 1, n_parts))
    np.add.at(sums, (index, part), data)
    np.add.at(counts, (index, part), 1.0)
    mean = float((sums.sum(axis=0) / counts.sum(axis=0)).mean())
    if len(sums) < 2:
        return mean, mean, mean

    def resampled(*columns: np.ndarray, axis: int) -> np.ndarray:
        found = np.stack([column.sum(axis=axis) for column in columns])
        totals, sizes = found[:n_parts], found[n_parts:]
        drawn = sizes > 0
        means = np.divide(totals, sizes, where=drawn, out=np.zeros_like(totals))
        return means.sum(axis=0) / drawn.sum(axis=0)

    low, high = bootstrap_interval(
        (*sums.T, *counts.T),
        resampled,
        paired=True,
        vectorized=True,
        seed=seed,
        batch=resamples_at_once(4 * n_parts * len(sums), BOOTSTRAP_RESAMPLES),
    )
    return mean, float(low), float(high)
