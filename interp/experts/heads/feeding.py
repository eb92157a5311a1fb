"""Experts that add more to given heads, such as the false-premise heads, than to other heads.

An expert feeds a head by its part in the head's query or value: ``relative_norm``, the norm of
what it adds over the norm of the whole (`interp.experts.heads.contributions`). Two questions:

* per expert (of one projection): is its part in the chosen heads of its layer larger than in the
  layer's other heads? The p-value is the exact permutation of which of the layer's heads are the
  chosen ones, so that in a layer of 9 heads with one chosen it cannot fall below 1/9; with three
  groups of values not below 1/3.
* the adapter as a whole: the mean part of all its experts in all chosen heads, beside that in
  random sets with as many other heads in each layer (`interp.heads.random_head_sets`); the p-value
  is again of who is chosen, permuted within every layer.

With grouped queries a value belongs to a group, and the null is of other groups.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.heads.contributions import (
    ExpertContributions,
    Where,
    contributions_at,
    prompt_positions,
)
from interp.experts.heads.slices import ExpertHeadContribution, Part, slices_of
from interp.figures.experts import feeding_figure
from interp.heads.headset import Head, HeadSet, Site, as_head_set
from interp.heads.locate import as_encoded
from interp.heads.random_sets import random_head_sets
from interp.lazy import stats
from interp.models.hooked_model import HookedModel
from interp.patching.sweep import check_units
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind
from interp.statistics.resampling import resamples_at_once
from interp.statistics.significance import q_values

RANDOM_SETS = 200
PERMUTATIONS = 10_000
READ_AT: dict[Site, dict[Part, Where]] = {
    "output": {"q": "object", "k": "object", "v": "object"},
    "attention": {"q": "last", "k": "object", "v": "object"},
}
"""Where a component is read, by the site of the heads: heads of ``output`` write at the object,
those of ``attention`` read from the last token."""


@dataclass(frozen=True, eq=False)
class ExpertFeeding(Displayed):
    """Which experts add more to the chosen heads than to the others, with p-values.

    Attributes:
        heads: the heads that were asked about.
        experts: a row for each component, layer and expert; columns ``component``, ``layer``,
            ``expert``, ``units`` (heads, or key/value heads), ``gate``, ``share``,
            ``relative_norm`` (mean over prompts and the chosen heads), ``others`` (the same over
            the layer's other heads), ``p_value``, ``q_value``, ``rank``.
        adapter: a row for each component: ``relative_norm`` of all experts together, the random
            sets' ``random_mean`` and ``random_p95``, ``percentile``, ``p_value``, ``n_sets``.
    """

    heads: HeadSet
    experts: pd.DataFrame
    adapter: pd.DataFrame

    def slices(self, count: int) -> list[ExpertHeadContribution]:
        """The first ``count`` experts' parts in the chosen heads, for ``slice_effects``."""
        rows = self.experts.head(count)[["component", "layer", "expert", "units"]]
        return [
            ExpertHeadContribution(component, int(layer), unit, int(expert))
            for component, layer, expert, units in rows.itertuples(index=False)
            for unit in units
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """One row an expert, largest part first."""
        return self.experts

    def plot(self, count: int = 20) -> go.Figure:
        """The first experts' parts in the chosen heads, beside those in the other heads."""
        return feeding_figure(self.experts, count)

    def _shown(self) -> Shown:
        n_heads = len(self.heads)
        words = f"What experts add to {n_heads} heads, beside random heads of the same layers."
        return Shown(words, (self.adapter, self.experts), self.plot)


def rank_expert_contributions(
    model: HookedModel,
    prompts: Premises | EncodedPremises,
    heads: HeadSet | Iterable[Head],
    *,
    site: Site | None = None,
    components: Sequence[Part] = ("q", "v"),
    kind: QuestionKind = "false",
    random_sets: int = RANDOM_SETS,
    seed: int = 0,
    progress: bool = True,
) -> ExpertFeeding:
    """Rank the experts of an adapted model by their part in given heads, with a null.

    Args:
        heads: a HeadSet, or (layer, head) tuples with their ``site`` (``output`` if not given).
        components: of the heads; layers without experts on a component are left out.

    Raises:
        UserError: no heads, heads that the model does not have, or none in a layer with experts.
    """
    chosen = as_head_set(heads, site)
    check_units(model, chosen.heads)
    if not chosen.heads:
        raise UserError("there are no heads to look at: select some first")
    encoded = as_encoded(model, prompts)
    by_position: dict[Where, list[Part]] = defaultdict(list)
    for component in components:
        by_position[READ_AT[chosen.site][component]].append(component)
    rows: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for where, read_there in by_position.items():
        positions = prompt_positions(model, encoded, where, kind=kind)
        found = contributions_at(model, positions, read_there, progress=progress)
        for component, contributions in found.items():
            units = units_by_layer(slices_of(model, chosen, [component]))
            rows += _expert_rows(contributions, units)
            whole.append(_adapter_row(contributions, units, n_sets=random_sets, seed=seed))
    if not rows:
        raise UserError("no layer of these heads has experts on " + ", ".join(components))
    table = pd.DataFrame(rows)
    table["q_value"] = q_values(table["p_value"].to_numpy())
    table = table.sort_values("relative_norm", ascending=False, ignore_index=True)
    table["rank"] = np.arange(1, len(table) + 1)
    return ExpertFeeding(chosen, table, pd.DataFrame(whole))


def units_by_layer(slices: Iterable[ExpertHeadContribution]) -> dict[int, list[int]]:
    """The slices' units, by layer."""
    found: dict[int, list[int]] = defaultdict(list)
    for part in sorted(slices, key=lambda part: (part.layer, part.unit)):
        found[part.layer].append(part.unit)
    return dict(found)


def _expert_rows(
    contributions: ExpertContributions, units: dict[int, list[int]]
) -> list[dict[str, Any]]:
    relative = contributions.mean_relative_norm
    table = contributions.to_dataframe()
    rows = []
    for layer, chosen in units.items():
        others = [unit for unit in range(relative.shape[1]) if unit not in chosen]
        for expert in np.flatnonzero(~np.isnan(relative[layer, 0])):
            parts = relative[layer, :, expert]
            there = (table["layer"] == layer) & (table["expert"] == expert)
            there &= table[contributions.unit_axis].isin(chosen)
            inside = table.loc[there, ["gate", "share"]].mean()
            rows.append(
                {
                    "component": contributions.component,
                    "layer": layer,
                    "expert": int(expert),
                    "units": tuple(chosen),
                    "gate": float(inside["gate"]),
                    "share": float(inside["share"]),
                    "relative_norm": float(parts[chosen].mean()),
                    "others": float(parts[others].mean()) if others else float("nan"),
                    "p_value": larger_in(parts[chosen], parts[others]),
                }
            )
    return rows


def larger_in(chosen: np.ndarray, others: np.ndarray) -> float:
    """One-sided p-value of a larger mean in ``chosen``, by permutation of who is chosen.

    Exact where there are no more than ``PERMUTATIONS`` ways to choose; 1 without any others.
    """
    if not len(others):
        return 1.0
    if len(chosen) == 1 or len(others) == 1:  # scipy wants two of each; this is the same count
        alone, rest, sign = (chosen, others, 1) if len(chosen) == 1 else (others, chosen, -1)
        everyone = np.concatenate([alone, rest])
        return float((sign * everyone >= sign * alone[0] - 1e-12).mean())
    result = stats.permutation_test(
        (chosen, others),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        permutation_type="independent",
        vectorized=True,
        alternative="greater",
        n_resamples=PERMUTATIONS,
        batch=resamples_at_once(3 * (len(chosen) + len(others)), PERMUTATIONS),
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _adapter_row(
    contributions: ExpertContributions, units: dict[int, list[int]], *, n_sets: int, seed: int
) -> dict[str, Any]:
    """The whole adapter's part in the chosen heads, and in random sets of other heads."""
    relative = contributions.adapter_mean_relative_norm
    n_layers, n_units = relative.shape
    pairs = [(layer, unit) for layer, some in units.items() for unit in some]
    pairs = tuple(pair for pair in pairs if not np.isnan(relative[pair]))
    if not pairs:
        return {"component": contributions.component, "n_sets": 0}
    drawn = random_head_sets(
        HeadSet(pairs), n_layers=n_layers, n_heads=n_units, n_sets=n_sets, seed=seed
    )
    null = np.array([np.nanmean([relative[pair] for pair in heads]) for heads in drawn])
    observed = float(np.mean([relative[pair] for pair in pairs]))
    permuted = _permuted_means(relative, pairs, n_sets=n_sets, seed=seed)
    return {
        "component": contributions.component,
        "n_units": len(pairs),
        "relative_norm": observed,
        "random_mean": float(null.mean()),
        "random_p95": float(np.quantile(null, 0.95)),
        "percentile": float((null < observed).mean() * 100),
        "p_value": float((1 + (permuted >= observed - 1e-12).sum()) / (1 + n_sets)),
        "n_sets": n_sets,
    }


def _permuted_means(
    relative: np.ndarray, pairs: Sequence[Head], *, n_sets: int, seed: int
) -> np.ndarray:
    """The mean when every layer's chosen units are any of the layer, its own ones included."""
    rng = np.random.default_rng(seed)
    sums = np.zeros(n_sets)
    for layer, count in Counter(layer for layer, _ in pairs).items():
        orders = rng.permuted(np.tile(relative[layer], (n_sets, 1)), axis=1)
        sums += orders[:, :count].sum(axis=1)
    return sums / len(pairs)
