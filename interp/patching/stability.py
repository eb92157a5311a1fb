"""Would other prompts give the same top units? Overlap of the top k across resamples and templates.

Two sets of k units overlap by their Jaccard index, |A ∩ B| / |A ∪ B|.

* **Resamples.** Groups of prompts are drawn with replacement; each draw's top k is compared with
  that of all prompts. The interval is that of the draws (percentiles). ``frequency`` says in which
  share of the draws a unit is in the top k.
* **Templates.** The top k of each template's prompts, each compared with each other. The interval
  comes from drawing groups within each template.

``chance`` is the mean overlap of two random sets of k of the n units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from interp.arguments import of_kind, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.dots import dot_figure
from interp.lazy import go, pd, stats
from interp.patching.edges.result import EdgeEffects
from interp.patching.effect_arrays import By, best_first, check_order
from interp.patching.result import Coordinates, PatchEffects
from interp.statistics.resampling import group_draws, resamples_at_once
from interp.statistics.significance import CONFIDENCE, group_means

DEFAULT_RESAMPLES = 500
Interval = tuple[float, float, float]
"""A value, and the ends of its 95 % interval."""


@dataclass(frozen=True, eq=False)
class Stability(Displayed):
    """How stable the top ``k`` of ``n_units`` is.

    Attributes:
        overlap: mean Jaccard index of resamples' top k with that of all prompts, and its interval.
        chance: mean Jaccard index of two random sets of k units.
        frequency: of each unit of the result, in the order of ``coordinates``.
        between_templates: mean Jaccard index over pairs of templates, or None with one template.
        templates: Jaccard index of each template with each, or None with one template.
    """

    k: int
    n_units: int
    overlap: Interval
    chance: float
    coordinates: tuple[Coordinates, ...]
    frequency: Float[np.ndarray, " unit"]
    axes: tuple[str, ...]
    between_templates: Interval | None = None
    templates: "pd.DataFrame | None" = None

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a unit that was ever in the top k: its coordinates and ``frequency``."""
        order = np.argsort(-self.frequency, kind="stable")
        rows = [
            (*self.coordinates[unit], float(self.frequency[unit]))
            for unit in order
            if self.frequency[unit] > 0
        ]
        return pd.DataFrame(rows, columns=[*self.axes, "frequency"])

    def plot(self, count: int = 20) -> "go.Figure":
        """How often each of the ``count`` most frequent units is in the top k."""
        rows = self.to_dataframe().head(count)
        names = [
            ", ".join(f"{axis} {where}" for axis, where in zip(self.axes, row, strict=True))
            for row in rows[list(self.axes)].itertuples(index=False)
        ]
        title = f"share of resamples in which it is among the top {self.k}"
        return dot_figure(names, rows["frequency"], title=title, span=(0.0, 1.0))

    def _shown(self) -> Shown:
        value, low, high = self.overlap
        text = (
            f"Top {self.k} of {self.n_units} units across resamples: mean overlap {value:.2f} "
            f"[{low:.2f}, {high:.2f}], by chance {self.chance:.2f}."
        )
        if self.between_templates is not None:
            value, low, high = self.between_templates
            text += f" Between templates {value:.2f} [{low:.2f}, {high:.2f}]."
        return Shown(text, (self.to_dataframe(),), self.plot)


def jaccard(a: set[int], b: set[int]) -> float:
    """|A ∩ B| / |A ∪ B|; two empty sets are alike."""
    return len(a & b) / len(a | b) if a | b else 1.0


def chance_overlap(k: int, n_units: int) -> float:
    """Mean Jaccard index of two random sets of k of n units."""
    shared = np.arange(k + 1)
    return float((stats.hypergeom.pmf(shared, n_units, k, k) * shared / (2 * k - shared)).sum())


@checked
def stability(
    result: PatchEffects | EdgeEffects,
    k: int = 10,
    *,
    by: By = "absolute",
    n_resamples: int = DEFAULT_RESAMPLES,
    seed: int | None = None,
) -> Stability:
    """Overlap of the top ``k`` units across resamples of groups, and across templates.

    Args:
        result: effects of units, or scores of edges (which have no templates).
        by: what the top k is of: ``absolute`` or ``signed`` mean effects.
        seed: of the resamples; by default the result's.

    Raises:
        UserError: fewer than two groups of prompts, or a k that is not between 1 and the number
            of measured units.
    """
    if not isinstance(result, EdgeEffects):
        of_kind("result", result, PatchEffects, advice="interp.patching.patch gives one")
    check_order(by)
    k, n_resamples = whole_number("k", k), whole_number("n_resamples", n_resamples, least=1)
    seed = result.seed if seed is None else whole_number("seed", seed, least=0)
    n_units = len(result.order())
    if not 1 <= k <= n_units:
        raise UserError(f"cannot take the top {k} of {n_units} measured units")
    means = group_means(result.values, result.groups).reshape(len(set(result.groups)), -1)
    if len(means) < 2:
        raise UserError("stability needs at least two groups of prompts to draw from")
    tops = _Tops(k, by, n_resamples, np.random.default_rng(seed))
    top, drawn = tops.measured(means), tops.drawn(means)
    frequency = np.bincount(drawn.ravel(), minlength=means.shape[1]) / n_resamples
    between, table = (None, None) if isinstance(result, EdgeEffects) else _templates(result, tops)
    return Stability(
        k=k,
        n_units=n_units,
        overlap=_interval([jaccard(top, set(units)) for units in drawn.tolist()]),
        chance=chance_overlap(k, n_units),
        coordinates=result.coordinates(),
        frequency=frequency,
        axes=result.axes[1:],
        between_templates=between,
        templates=table,
    )


@dataclass(frozen=True)
class _Tops:
    """How the top k are taken, of all groups of prompts and of resamples."""

    k: int
    by: By
    n_resamples: int
    generator: np.random.Generator

    def measured(self, means: Float[np.ndarray, "group unit"]) -> set[int]:
        """The top k over all groups."""
        weighted = _weighted(means, np.ones((1, len(means))))
        return set(best_first(weighted, by=self.by)[0, : self.k].tolist())

    def drawn(self, means: Float[np.ndarray, "group unit"]) -> Int[np.ndarray, "resample k"]:
        """The top k of every resample, some resamples at a time."""
        size = resamples_at_once(4 * max(means.shape), self.n_resamples)
        draws = group_draws(len(means), self.n_resamples, size, generator=self.generator)
        tops = [best_first(_weighted(means, counts), by=self.by)[:, : self.k] for counts in draws]
        return np.concatenate(tops)


def _templates(result: PatchEffects, of: _Tops) -> "tuple[Interval | None, pd.DataFrame | None]":
    """Mean overlap over pairs of templates with its interval, and the overlap of each pair."""
    names = list(dict.fromkeys(result.templates))
    if len(names) < 2:
        return None, None
    tops, drawn = [], []
    for name in names:
        part = result.take([i for i, template in enumerate(result.templates) if template == name])
        means = group_means(part.values, part.groups).reshape(len(set(part.groups)), -1)
        tops.append(of.measured(means))
        drawn.append([set(units) for units in of.drawn(means).tolist()])
    overlaps = [[jaccard(a, b) for b in tops] for a in tops]
    table = pd.DataFrame(overlaps, index=pd.Index(names), columns=names)
    pairs = list(combinations(range(len(names)), 2))
    value = float(np.mean([overlaps[a][b] for a, b in pairs]))
    draws = [
        float(np.mean([jaccard(drawn[a][i], drawn[b][i]) for a, b in pairs]))
        for i in range(of.n_resamples)
    ]
    return (value, *_interval(draws)[1:]), table


def _weighted(
    means: Float[np.ndarray, "group unit"], weights: np.ndarray
) -> Float[np.ndarray, "resample unit"]:
    """Weighted means over the groups in which a unit was measured; NaN without any."""
    measured = ~np.isnan(means)
    weights = weights.astype(float)
    counts = weights @ measured
    sums = weights @ np.where(measured, means, 0.0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _interval(draws: Sequence[float]) -> Interval:
    outside = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [outside, 100 - outside])
    return float(np.mean(draws)), float(low), float(high)
