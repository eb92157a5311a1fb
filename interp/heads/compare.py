"""Did fine-tuning move the false-premise heads? Head effects of two models on the same prompts.

* Spearman correlation of the heads' mean effects, with an interval from leaving out each subject.
  Noise in the means lowers a correlation, and resampled means are noisier than those of the data:
  a bootstrap interval of it lies too low, often below the value itself, the jackknife's does not.
* Overlap of the ``top_k`` heads as Jaccard index |A ∩ B| / |A ∪ B|. Two random sets of k out of n
  heads share m with hypergeometric probability, which gives the index expected by chance and the
  p-value of sharing at least so many.
* Neither can be judged alone: effects are noisy, and two searches in *one* model do not agree
  fully. So the subjects are split into random halves, and the correlation between halves is
  given within each model and between the models. Where **between** is lower than **within**, the
  heads have moved.
* Per head, the change of its effect (after − before), paired by prompt, with FDR.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.experts import shift_figure
from interp.heads.effects import HeadEffects, HeadStatistics, head_statistics
from interp.heads.headset import Head, HeadSet, as_head_set
from interp.lazy import go, pd, stats
from interp.patching.effect_arrays import best_first
from interp.patching.result import STATISTICS
from interp.patching.stability import chance_overlap
from interp.statistics.jackknife import jackknife
from interp.statistics.resampling import resamples_at_once
from interp.statistics.significance import bootstrap_interval, group_means

TOP_K = 10
HALVES = 100


@dataclass(frozen=True, eq=False)
class HeadComparison(Displayed):
    """Effects of the same heads before and after.

    Attributes:
        before, after: effects on the same prompts.
        top_k: how many heads the overlap counts.
        seed: of the resampling and the halves.
    """

    before: HeadEffects
    after: HeadEffects
    top_k: int = TOP_K
    seed: int = 0

    def __post_init__(self) -> None:
        for what in ("site", "subjects", "templates"):
            if getattr(self.before, what) != getattr(self.after, what):
                raise UserError(f"the effects differ in {what}: compare the same prompts and site")
        before, after = self.before.values.shape, self.after.values.shape
        if before != after:
            raise UserError(f"the effects are of models of different sizes: {before}, {after}")
        if not torch.equal(self.before.edited, self.after.edited):
            raise UserError("the effects are of different heads: compare the same ones")
        if not 0 < self.top_k <= self.n_heads:
            raise UserError(f"cannot take the top {self.top_k} of {self.n_heads} heads")

    @property
    def n_heads(self) -> int:
        """Heads that were edited, in all layers."""
        return self.before.n_edited

    @cached_property
    def _means(self) -> tuple[Float[np.ndarray, "subject unit"], Float[np.ndarray, "subject unit"]]:
        """Both effects by subject, heads in a row."""
        both = (self.before, self.after)
        before, after = (group_means(f.values[:, f.edited], f.subjects) for f in both)
        return before, after

    @cached_property
    def spearman(self) -> tuple[float, float, float]:
        """Correlation of the mean effects: value, low, high.

        The jackknife interval over subjects is of the correlation that searches with as many
        subjects find on average, which it covers in 95 % of them or more. That of the heads' true
        effects is higher, the more so the noisier the means; ``halves`` shows by how much they
        are.
        """
        before, after = self._means
        value = float(rank_correlation(before.mean(axis=0), after.mean(axis=0)))
        without = rank_correlation(*(_without_each(means) for means in (before, after)))
        known = without[~np.isnan(without)]
        if len(known) < 2 or np.isnan(value):
            return value, value, value
        low, high = jackknife(value, known)
        return value, max(-1.0, float(low)), min(1.0, float(high))

    @cached_property
    def jaccard(self) -> tuple[float, float, float]:
        """Overlap of the top heads: value, low, high, from resampling subjects."""
        before, after = self._means
        value = float(self._overlap(before.mean(axis=0), after.mean(axis=0)))
        if len(before) < 2:
            return value, value, value

        def resampled(which: np.ndarray, axis: int) -> Any:
            index = np.moveaxis(which.astype(int), axis, -1)
            return self._overlap(before[index].mean(axis=-2), after[index].mean(axis=-2))

        low, high = bootstrap_interval(
            (np.arange(len(before)),),
            resampled,
            vectorized=True,
            seed=self.seed,
            batch=resamples_at_once(2 * before.size, 50),
        )
        return value, float(low), float(high)

    def _overlap(self, first: np.ndarray, second: np.ndarray) -> Any:
        tops = [best_first(means)[..., : self.top_k] for means in (first, second)]
        shared = (tops[0][..., :, None] == tops[1][..., None, :]).sum(axis=(-2, -1))
        return shared / (2 * self.top_k - shared)

    @property
    def chance_jaccard(self) -> float:
        """The index that two random sets of ``top_k`` heads have on average."""
        return chance_overlap(self.top_k, self.n_heads)

    @property
    def jaccard_p_value(self) -> float:
        """How likely two random sets share at least as many heads."""
        shared = round(2 * self.top_k * self.jaccard[0] / (1 + self.jaccard[0]))
        return float(stats.hypergeom.sf(shared - 1, self.n_heads, self.top_k, self.top_k))

    @cached_property
    def halves(self) -> dict[str, float]:
        """Mean correlation between random halves of the subjects.

        Keys: ``within_before``, ``within_after``, ``between``. NaN with fewer than four subjects.
        """
        before, after = self._means
        rng, size = np.random.default_rng(self.seed), len(before) // 2
        if size < 2:
            return dict.fromkeys(("within_before", "within_after", "between"), float("nan"))
        orders = np.stack([rng.permutation(len(before)) for _ in range(HALVES)])
        halves = orders[:, :size], orders[:, size : 2 * size]
        before_1, before_2 = (before[half].mean(axis=1) for half in halves)
        after_1, after_2 = (after[half].mean(axis=1) for half in halves)
        pairs = {
            "within_before": [(before_1, before_2)],
            "within_after": [(after_1, after_2)],
            "between": [(before_1, after_2), (after_1, before_2)],
        }
        return {
            name: _mean_of_known(np.concatenate([rank_correlation(*pair) for pair in of]))
            for name, of in pairs.items()
        }

    @cached_property
    def change(self) -> HeadStatistics:
        """Statistics of after − before, paired by prompt."""
        difference = self.after.values - self.before.values
        resolution = max(self.before.resolution, self.after.resolution)
        subjects = self.before.subjects
        return head_statistics(difference, subjects, seed=self.seed, resolution=resolution)

    def effect_of(self, heads: HeadSet | Iterable[Head]) -> dict[str, float]:
        """Mean effect of some heads ``before`` and ``after``.

        Raises:
            UserError: no heads, heads of another site, or one that was not measured.
        """
        of_site = as_head_set(heads, self.before.site)
        if not of_site.heads:
            raise UserError("there are no heads to take the effect of: name at least one")
        measured = set(self.before.ranked())
        for layer, head in of_site:
            if (layer, head) not in measured:
                raise UserError(f"head {head} of layer {layer} was not measured in this comparison")
        layers, numbers = zip(*of_site, strict=True)
        return {
            name: float(found.statistics.mean[list(layers), list(numbers)].mean())
            for name, found in (("before", self.before), ("after", self.after))
        }

    def to_dict(self) -> dict[str, Any]:
        """The summary, as JSON holds it."""
        return {
            "n_heads": self.n_heads,
            "n_subjects": len(self._means[0]),
            "spearman": list(self.spearman),
            "halves": self.halves,
            "top_k": self.top_k,
            "jaccard": list(self.jaccard),
            "chance_jaccard": self.chance_jaccard,
            "jaccard_p_value": self.jaccard_p_value,
            "changed_at_fdr_0.05": int((self.change.q_value <= 0.05).sum()),
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a head that was edited, largest absolute change first.

        Columns: ``site``, ``layer``, ``head``, ``before``, ``after``, ``change``, ``ci_low``,
        ``ci_high``, ``p_value``, ``q_value``, ``rank_before``, ``rank_after``.
        """
        layer, head = (index.ravel() for index in np.indices(self.before.values.shape[1:]))
        change = {name: getattr(self.change, name).ravel() for name in STATISTICS}
        frame = pd.DataFrame(
            {
                "site": self.before.site,
                "layer": layer,
                "head": head,
                "before": self.before.statistics.mean.ravel(),
                "after": self.after.statistics.mean.ravel(),
                "change": self.change.mean.ravel(),
                **change,
                "rank_before": self.before.rank.ravel(),
                "rank_after": self.after.rank.ravel(),
            }
        )
        order = frame["change"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].head(self.n_heads).reset_index(drop=True)

    def plot(self, heads: HeadSet | None = None) -> "go.Figure":
        """Effect after against effect before, a point a head; ``heads`` are marked."""
        return shift_figure(
            self.to_dataframe(), spearman=self.spearman, heads=() if heads is None else heads
        )

    def _shown(self) -> Shown:
        found = self.to_dict()
        (value, low, high), (same, same_low, same_high) = found["spearman"], found["jaccard"]
        text = (
            f"Effects of {self.n_heads} heads before and after: Spearman {value:.2f} [{low:.2f}, "
            f"{high:.2f}]; overlap of the top {self.top_k} {same:.2f} [{same_low:.2f}, "
            f"{same_high:.2f}], by chance {found['chance_jaccard']:.2f}; "
            f"{found['changed_at_fdr_0.05']} heads changed with q ≤ 0.05."
        )
        return Shown(text, (self.to_dataframe(),), self.plot)


def compare_heads(
    before: HeadEffects, after: HeadEffects, *, top_k: int = TOP_K, seed: int = 0
) -> HeadComparison:
    """Compare head effects of a model before and after fine-tuning.

    Both come from `interp.locate_heads` with the same premises, site and method.

    Raises:
        UserError: effects of other prompts, another site, or another size of model.
    """
    return HeadComparison(before, after, top_k, seed)


def rank_correlation(
    first: Float[np.ndarray, "*sample unit"], second: Float[np.ndarray, "*sample unit"]
) -> Any:
    """Spearman's, along the last axis; NaN for a sample with a side of equal effects."""
    # Pearson's of ranks, since scipy's spearmanr does not take an axis of many samples.
    ranks = [stats.rankdata(side, axis=-1) for side in (first, second)]
    x, y = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
    size = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    empty = np.full(size.shape, np.nan)
    return np.divide((x * y).sum(axis=-1), size, out=empty, where=size > 0)


def _without_each(
    means: Float[np.ndarray, "subject unit"],
) -> Float[np.ndarray, "subject unit"]:
    """The mean over all subjects but one, for each."""
    return (means.sum(axis=0) - means) / max(1, len(means) - 1)


def _mean_of_known(values: Float[np.ndarray, " sample"]) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
