"""A metric without and with a constraint on the same documents: the difference, with an interval.

The interval is a paired bootstrap over documents: each resample takes a document's values of both
runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.statistics.resampling import resamples_at_once
from interp.statistics.significance import BOOTSTRAP_RESAMPLES, bootstrap_interval

Aggregate = Callable[..., Any]


@dataclass(frozen=True)
class PairedMetric:
    """One metric of a task.

    Attributes:
        task, metric: their names; ``metric`` ends with the filter's if there are several.
        n: documents.
        fired: in how many of them the gate fired.
        without, constrained: the metric's value; NaN where only the difference was measured.
        difference: ``constrained`` minus ``without``; NaN for a metric that is no mean, no
            perplexity and no bits per byte.
        low, high: the 95 % interval of the difference; NaN where there is none.
    """

    task: str
    metric: str
    n: int
    fired: int
    without: float
    constrained: float
    difference: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """The fields, with None for NaN, which JSON does not have."""
        return {key: None if value != value else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "PairedMetric":
        """What ``to_dict`` gave."""
        nan: Any = float("nan")
        return cls(**{key: nan if value is None else value for key, value in content.items()})


def _mean(values: np.ndarray, axis: int = -1) -> Any:
    return values.mean(axis=axis)


def _nanmean(values: np.ndarray, axis: int = -1) -> Any:
    there = ~np.isnan(values)
    counts = there.sum(axis=axis)
    sums = np.where(there, values, 0.0).sum(axis=axis)
    return np.divide(sums, counts, where=counts > 0, out=np.full(np.shape(counts), np.nan))


def _perplexity(values: np.ndarray, axis: int = -1) -> Any:
    return np.exp(-values.mean(axis=axis))


def _weighted_perplexity(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> Any:
    return np.exp(-values.sum(axis=axis) / weights.sum(axis=axis))


def _bits(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> Any:
    return -values.sum(axis=axis) / weights.sum(axis=axis) / np.log(2)


AGGREGATES: dict[str, Aggregate] = {
    "mean": _mean,
    "nanmean": _nanmean,
    "perplexity": _perplexity,
    "weighted_perplexity": _weighted_perplexity,
    "bits_per_byte": _bits,
}
"""By the name of lm-evaluation-harness' own function; other metrics have no interval."""


def difference(
    without: Sequence[Any], constrained: Sequence[Any], aggregation: str, *, seed: int = 0
) -> tuple[float, float, float]:
    """Constrained minus unconstrained value, and its interval; NaN for an unknown aggregation.

    Args:
        without, constrained: of each document, a number, or a pair of a number and its weight.
    """
    aggregate = AGGREGATES.get(aggregation)
    if aggregate is None:
        return float("nan"), float("nan"), float("nan")
    before, after = _columns(without), _columns(constrained)
    if aggregation == "nanmean":
        there = ~(np.isnan(before[0]) & np.isnan(after[0]))
        before, after = ([column[there] for column in both] for both in (before, after))
        without = before[0].tolist()

    def statistic(*columns: np.ndarray, axis: int = -1) -> Any:
        half = len(columns) // 2
        return aggregate(*columns[half:], axis=axis) - aggregate(*columns[:half], axis=axis)

    data = (*before, *after)
    value = float(statistic(*data))
    if len(without) < 2:
        return value, float("nan"), float("nan")
    low, high = bootstrap_interval(
        data,
        statistic,
        paired=True,
        vectorized=True,
        seed=seed,
        batch=resamples_at_once(2 * len(data) * len(without), BOOTSTRAP_RESAMPLES),
    )
    return value, float(low), float(high)


def _columns(values: Sequence[Any]) -> tuple[Float[np.ndarray, " document"], ...]:
    """The numbers, and their weights if they have any."""
    table = np.asarray(values, dtype=float)
    return tuple(table.reshape(len(values), -1).T)
