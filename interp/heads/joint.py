"""Effects of heads in several relations: in each, and pooled with equal weight.

A search in one relation (FAITH, arXiv 2402.19103, searches in each of its sets) may find heads that
matter for its own words only. Here every relation has its own effects. They are pooled after each
is divided by its largest mean effect, so that a relation with large logits does not decide alone,
and every relation counts the same, however many prompts it has. Pooled effects are in logits again:
shares of the largest effect, times the mean of the relations' largest effects.

Whether a head matters beyond the relations that were searched is a question about relations, not
about prompts: its mean effects in the relations are the sample (``over_relations``).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from interp.arguments import check_choice
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.relations import MIXED, heads_by_relation
from interp.heads.compare import rank_correlation
from interp.heads.effects import HeadEffects, Method, select_heads
from interp.heads.headset import Head, HeadSet, Site
from interp.lazy import go, pd
from interp.patching.effect_arrays import best_first
from interp.patching.result import STATISTICS
from interp.statistics.significance import MINIMUM_GROUPS, EffectStatistics, effect_statistics

SelectedBy = Literal["mean", "worst", "votes"]
"""How one head set is chosen for all relations.

* ``mean``: the largest pooled effects;
* ``worst``: the largest effects in the relation where the head has its smallest one;
* ``votes``: in how many relations a head is among the best, as many as are chosen.
"""

NULL_DRAWS = 200
STABILITY_COLUMNS = [
    *("a", "b", "jaccard", "jaccard_null", "jaccard_null_p95"),
    *("spearman", "spearman_null", "spearman_null_p95"),
]


@dataclass(frozen=True, eq=False)
class JointEffects(Displayed):
    """Effects of every head in several relations, at one site and by one method.

    Attributes:
        by_relation: each relation's effects.
        selected_by: how `select` chooses by default.

    Raises UserError for no relation, or effects of different sites, methods or models.
    """

    by_relation: Mapping[str, HeadEffects]
    selected_by: SelectedBy = "mean"

    def __post_init__(self) -> None:
        check_choice("way to select", self.selected_by, get_args(SelectedBy))
        if not self.by_relation:
            raise UserError("there are no relations to pool")
        for what in ("site", "method", "source"):
            found = sorted({getattr(effects, what) for effects in self.by_relation.values()})
            if len(found) > 1:
                raise UserError(f"the relations' effects differ in {what}: {', '.join(found)}")
        if len({effects.values.shape[1:] for effects in self.by_relation.values()}) > 1:
            raise UserError("the relations' effects are of models of different sizes")
        first = self._first.edited
        if any(not torch.equal(effects.edited, first) for effects in self.by_relation.values()):
            raise UserError("the relations' effects are of different heads")

    @property
    def relations(self) -> tuple[str, ...]:
        """The names of the relations."""
        return tuple(self.by_relation)

    @property
    def site(self) -> Site:
        """Where heads were edited."""
        return self._first.site

    @property
    def method(self) -> Method:
        """How the effects were computed."""
        return self._first.method

    @property
    def _first(self) -> HeadEffects:
        return next(iter(self.by_relation.values()))

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads in a layer)."""
        n_layers, n_heads = self._first.values.shape[1:]
        return n_layers, n_heads

    @property
    def n_heads(self) -> int:
        """Heads in all layers."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def largest(self) -> dict[str, float]:
        """Each relation's largest mean effect, in logits; 1 where no head has a positive one."""
        found = {}
        for name, effects in self.by_relation.items():
            top = float(np.nanmax(effects.statistics.mean))
            found[name] = top if top > effects.resolution else 1.0
        return found

    @cached_property
    def shares(self) -> Float[np.ndarray, "relation layer head"]:
        """Mean effects, as shares of the relation's largest."""
        return np.stack(
            [effects.statistics.mean / self.largest[n] for n, effects in self.by_relation.items()]
        )

    @cached_property
    def pooled(self) -> HeadEffects:
        """All prompts together, weighted so that the mean over subjects is that over relations.

        A subject is named ``relation/subject`` and a template ``relation/template``. Intervals
        resample subjects within each relation: weights are of the relations' sizes, which a
        resample of all subjects together would change. The probabilities are not weighted.
        """
        parts = list(self.by_relation.items())
        unit = float(np.mean(list(self.largest.values())))
        subjects = [[f"{name}/{subject}" for subject in part.subjects] for name, part in parts]
        n_subjects = [len(set(names)) for names in subjects]
        weights = [sum(n_subjects) / (len(parts) * number) for number in n_subjects]
        scaled = [
            part.values * (weight * unit / self.largest[name])
            for (name, part), weight in zip(parts, weights, strict=True)
        ]
        return replace(
            self._first,
            values=torch.cat(scaled),
            probability=torch.cat([part.probability for _, part in parts]),
            subjects=tuple(subject for names in subjects for subject in names),
            templates=tuple(f"{name}/{at}" for name, part in parts for at in part.templates),
            resolution=max(part.resolution for _, part in parts),
            relations=tuple(name for name, part in parts for _ in part.subjects),
        )

    @cached_property
    def over_relations(self) -> EffectStatistics:
        """Each head's mean share over the relations, which are the sample: interval, p, q.

        A small q says that the head matters in relations like these, not in one of them only. All
        but the mean are NaN with fewer than `MINIMUM_GROUPS` relations.
        """
        if len(self.relations) < MINIMUM_GROUPS:
            nothing = np.full(self.shape, np.nan)
            return EffectStatistics(self.shares.mean(axis=0), *[nothing] * 4)
        shares = torch.from_numpy(self.shares)
        return effect_statistics(
            shares, self.relations, seed=self._first.seed, resolution=0.0, what="relations"
        )

    def ranked(self, by: SelectedBy = "mean", *, count: int = 1) -> tuple[Head, ...]:
        """The edited heads, best first. ``votes`` counts the relations' best ``count`` heads."""
        check_choice("way to select", by, get_args(SelectedBy))
        flat = self.shares.reshape(len(self.relations), -1)
        mean = flat.mean(axis=0)
        if by == "worst":
            order = np.lexsort((-mean, -flat.min(axis=0)))
        elif by == "votes":
            tops = np.stack([best_first(shares)[:count] for shares in flat])
            votes = np.bincount(tops.ravel(), minlength=flat.shape[1])
            order = np.lexsort((-mean, -votes))
        else:
            order = best_first(mean)
        n_heads = self.shape[1]
        edited = order[: self._first.n_edited]
        return tuple((int(index) // n_heads, int(index) % n_heads) for index in edited)

    def select(
        self,
        *,
        fraction: float | None = None,
        count: int | None = None,
        fdr: float | None = None,
        by: SelectedBy | None = None,
    ) -> HeadSet:
        """One head set for all relations.

        Exactly one of ``fraction`` (of all heads, at least one), ``count`` and ``fdr`` (every head
        with a positive effect and q ≤ fdr over the relations or, with fewer than six of them, in
        the pooled effects).
        """
        by = self.selected_by if by is None else by
        check_choice("way to select", by, get_args(SelectedBy))
        found = select_heads(self.pooled, fraction=fraction, count=count, fdr=fdr)
        heads, how = found.heads, found.chosen_by
        if fdr is not None:
            few = len(self.relations) < MINIMUM_GROUPS
            q_values = (self.pooled.statistics if few else self.over_relations).q_value
            positive = self.shares.mean(axis=0) > 0
            heads = tuple(h for h in self.ranked(by) if positive[h] and q_values[h] <= fdr)
        elif by != "mean":
            ways = {"worst": "largest effects in their worst relation", "votes": "most voted"}
            heads = self.ranked(by, count=max(1, len(found)))[: len(found)]
            how = f"{len(found)} {ways[by]}, {self.method}"
        return HeadSet(heads, self.site, f"{how}, over {', '.join(self.relations)}")

    def without(self, *relations: str) -> "JointEffects":
        """The same without some relations. Raises UserError for one that is not there."""
        for name in relations:
            check_choice("relation", name, self.relations)
        kept = {name: of for name, of in self.by_relation.items() if name not in relations}
        return JointEffects(kept, self.selected_by)

    def to_dataframe(self, selected: HeadSet | None = None) -> "pd.DataFrame":
        """The pooled effects, in the columns of ``heads.csv``, best first."""
        return self.pooled.to_dataframe(selected)

    def relations_dataframe(self, selected: HeadSet | None = None) -> "pd.DataFrame":
        """The content of ``heads_by_relation.csv``: one row a relation and head.

        The columns of ``heads.csv`` after ``relation``, then ``share``: the effect as a share of
        the relation's largest. Rows of the relation ``(mixed)`` have the mean share over the
        relations as their effect, with the interval and the test over relations.
        """
        tables = []
        for name, effects in self.by_relation.items():
            table = effects.to_dataframe(selected)
            table.insert(0, "relation", name)
            table["share"] = table["effect"] / self.largest[name]
            tables.append(table)
        layer, head = (index.ravel() for index in np.indices(self.shape))
        mixed = self.over_relations
        chosen = set(selected.heads) if selected and selected.site == self.site else set()
        table = pd.DataFrame(
            {
                **{"relation": MIXED, "site": self.site, "layer": layer, "head": head},
                "effect": mixed.mean.ravel(),
                **{name: getattr(mixed, name).ravel() for name in STATISTICS},
                "rank": best_first(mixed.mean.ravel()).argsort() + 1,
                "selected": [pair in chosen for pair in zip(layer, head, strict=True)],
                "share": mixed.mean.ravel(),
            }
        )
        table = table.sort_values("rank").head(self._first.n_edited)
        return pd.concat([*tables, table], ignore_index=True)

    def stability(self, count: int = 8, *, seed: int = 0) -> "pd.DataFrame":
        """How alike two relations' heads are: one row a pair of relations, and beside it chance.

        Columns: ``a``, ``b``; ``jaccard`` of the best ``count`` heads, ``jaccard_null`` of b's set
        with random sets that have as many heads in each layer as a's; ``spearman`` of all mean
        effects. Both nulls permute a's heads within their layers: a random set is drawn from all
        heads of a layer, a's own among them. Each null is a mean over `NULL_DRAWS` draws, with its
        95th percentile in ``…_null_p95``. Raises UserError where only some heads were edited:
        chance draws from all.
        """
        if self._first.n_edited < self.n_heads:
            raise UserError("stability is measured over all heads: locate without `heads`")
        rows = []
        for a, b in combinations(self.relations, 2):
            sets = [self.by_relation[name].select(count=count) for name in (a, b)]
            means = [self.by_relation[name].statistics.mean for name in (a, b)]
            rows.append(
                {
                    **{"a": a, "b": b, "jaccard": _jaccard(sets[0], sets[1])},
                    **_null("jaccard_null", self._random_overlaps(sets[0], sets[1], seed)),
                    "spearman": float(rank_correlation(means[0].ravel(), means[1].ravel())),
                    **_null("spearman_null", _permuted(means[0], means[1], seed)),
                }
            )
        return pd.DataFrame(rows, columns=STABILITY_COLUMNS)

    def _random_overlaps(self, first: HeadSet, second: HeadSet, seed: int) -> list[float]:
        """Overlaps of the second set with random heads of the first one's layers."""
        # `random_head_sets` leaves out the set itself, which is no chance: the more of b's heads
        # are in it, the fewer of them could be drawn.
        rng, n_heads = np.random.default_rng(seed), self.shape[1]
        per_layer = Counter(layer for layer, _ in first)
        sets = [
            HeadSet(
                tuple(
                    (layer, int(head))
                    for layer, size in per_layer.items()
                    for head in rng.permutation(n_heads)[:size]
                ),
                first.site,
            )
            for _ in range(NULL_DRAWS)
        ]
        return [_jaccard(heads, second) for heads in sets]

    def plot(self, selected: HeadSet | None = None, *, by: str = "head") -> "go.Figure":
        """Heat map of the pooled effects, or of the best heads in each relation (``relation``)."""
        if check_choice("kind of figure", by, ("head", "relation")) == "head":
            return self.pooled.plot(selected)
        return heads_by_relation(self.relations_dataframe(selected))

    def _shown(self) -> Shown:
        text = (
            f"Effects of {self._first.n_edited} heads (site {self.site}, {self.method}) "
            f"in {len(self.relations)} relations: {', '.join(self.relations)}. Pooled with equal "
            "weight, in logits."
        )
        return Shown(text, (self.to_dataframe().drop(columns=["site", "selected"]),), self.plot)


@checked
def pool_effects(effects: Sequence[HeadEffects], relations: Sequence[str]) -> JointEffects:
    """Effects that were measured one relation at a time, as one result.

    Raises:
        UserError: a relation twice, or another number of names than of effects.
    """
    if len(effects) != len(relations) or len(set(relations)) < len(relations):
        raise UserError(f"{len(effects)} effects need as many different relations")
    return JointEffects(dict(zip(relations, effects, strict=True)))


def _jaccard(a: HeadSet, b: HeadSet) -> float:
    """Shared heads over all heads of two sets; 1 for two empty ones."""
    every = set(a) | set(b)
    return len(set(a) & set(b)) / len(every) if every else 1.0


def _permuted(
    a: Float[np.ndarray, "layer head"], b: Float[np.ndarray, "layer head"], seed: int
) -> list[float]:
    """Rank correlations after the heads of ``a`` are permuted within their layers."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permuted(a, axis=1).ravel() for _ in range(NULL_DRAWS)])
    return rank_correlation(drawn, np.broadcast_to(b.ravel(), drawn.shape)).tolist()


def _null(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: float(np.mean(values)), f"{name}_p95": float(np.quantile(values, 0.95))}
