"""Agreement of routing with ablation: load by task (correlation) beside effect by task (cause).

An expert is *routed* to the task from which it gets the largest share of load, and it *affects* the
task whose loss rises most when it is intervened on. The share of experts for which both name the
same task is compared with what two unrelated assignments would agree on,
Σ_t P(routed = t) · P(affects = t), by an exact binomial test, which takes experts as independent.
Spearman's ρ compares all (expert, task) cells, each value less the expert's mean over tasks, so
that a busy expert counts for none of them.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.effects.effects import ExpertEffects
from interp.figures.experts import agreement_figure
from interp.lazy import stats

_KEY = ["layer", "target", "expert"]
_COLUMNS = (*_KEY, "task", "load")


@dataclass(frozen=True, eq=False)
class RoutingAgreement(Displayed):
    """Whether the task that an expert is routed to is the task that it affects.

    Attributes:
        table: a row an expert, largest effect first: ``layer``, ``target``, ``expert``,
            ``routed_task``, ``load`` (there), ``load_elsewhere`` (mean of the other tasks),
            ``affected_task``, ``effect`` (there, nats per answer token), ``effect_elsewhere``,
            ``q_value``, ``significant``, ``agree``.
        n: how many experts affect some task significantly; the next figures are over these.
        share, chance: how many agree, and how many would by chance; NaN without any.
        p_value: of that share or a larger one by chance.
        spearman, spearman_p: over all experts and tasks; NaN where one side is constant.
    """

    table: pd.DataFrame
    n: int
    share: float
    chance: float
    p_value: float
    spearman: float
    spearman_p: float

    def to_dataframe(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self) -> go.Figure:
        """Effect on the task that an expert affects most, against load from that routed most."""
        return agreement_figure(self.table)

    def _shown(self) -> Shown:
        words = "No expert affects a task significantly: there is nothing to compare."
        if self.n:
            words = (
                f"{self.n} experts affect some task significantly; {self.share:.0%} of them affect "
                "most the task that is routed to them most, "
                f"by chance {self.chance:.0%} (p = {self.p_value:.3g}). "
                f"Spearman of load and effect {self.spearman:.2f} (p = {self.spearman_p:.3g})."
            )
        return Shown(words, (self.table,), self.plot)


def routing_agreement(
    effects: ExpertEffects, load: pd.DataFrame, *, fdr: float = 0.05
) -> RoutingAgreement:
    """Compare each expert's load by task with its effects by task.

    Args:
        effects: by projection, not taken together.
        load: columns ``layer``, ``target``, ``expert``, ``task``, ``load`` (shares of a task's
            tokens, say), for the tasks of the effects at least.
        fdr: the q-value up to which an effect counts.

    Raises:
        UserError: fewer than two tasks in both, missing columns, or no expert in both.
    """
    if missing := [name for name in _COLUMNS if name not in load]:
        raise UserError(f"the table of load lacks {', '.join(missing)}")
    if effects.projections is None:
        raise UserError("these effects are of experts taken together: measure them one by one")
    tasks = [task for task in effects.tasks if task in set(load["task"])]
    if len(tasks) < 2:
        raise UserError("load and effects must share at least two tasks")
    caused = effects.to_dataframe()
    keys = [
        (projection.layer, target, projection.module_target)
        for projection in effects.projections
        for target in dict.fromkeys(load["target"])
        if projection.has_target(str(target))
    ]
    renamed = pd.DataFrame(keys, columns=["layer", "target", "module_target"]).drop_duplicates()
    there = load.merge(renamed, on=["layer", "target"]).assign(target=lambda t: t["module_target"])
    both = caused.merge(there[list(_COLUMNS)], on=[*_KEY, "task"])
    both = pd.DataFrame(both[both["task"].isin(tasks)])
    groups = [pd.DataFrame(group) for _, group in both.groupby(_KEY)]
    rows = [_row(group, fdr) for group in groups if len(group) == len(tasks)]
    if not rows:
        raise UserError("no expert is in both: layer, target and expert must name the same ones")
    table = pd.DataFrame(rows).sort_values("effect", ascending=False, kind="stable")
    counted = pd.DataFrame(table[table["significant"]])
    share = chance = p_value = float("nan")
    if len(counted):
        share = float(counted["agree"].mean())
        routed, affected = (
            counted[name].value_counts(normalize=True).reindex(tasks).fillna(0.0).to_numpy()
            for name in ("routed_task", "affected_task")
        )
        chance = float(np.clip((routed * affected).sum(), 0.0, 1.0))
        agreeing = int(counted["agree"].sum())
        p_value = float(
            stats.binomtest(agreeing, len(counted), chance, alternative="greater").pvalue
        )
    table, ranks = table.reset_index(drop=True), _rank_correlation(both)
    return RoutingAgreement(table, len(counted), share, chance, p_value, *ranks)


def _row(group: pd.DataFrame, fdr: float) -> dict[str, object]:
    of_load, of_effect = (
        group.iloc[group[name].to_numpy().argmax()] for name in ("load", "effect")
    )
    n_others = len(group) - 1
    return {
        **{name: of_load[name] for name in _KEY},
        "routed_task": of_load["task"],
        "load": of_load["load"],
        "load_elsewhere": (group["load"].sum() - of_load["load"]) / n_others,
        "affected_task": of_effect["task"],
        "effect": of_effect["effect"],
        "effect_elsewhere": (group["effect"].sum() - of_effect["effect"]) / n_others,
        "q_value": of_effect["q_value"],
        "significant": bool(of_effect["q_value"] <= fdr and of_effect["effect"] > 0),
        "agree": bool(of_load["task"] == of_effect["task"]),
    }


def _rank_correlation(both: pd.DataFrame) -> tuple[float, float]:
    """Spearman's ρ of load and effect, each less the expert's mean over tasks."""
    means = both.groupby(_KEY)[["load", "effect"]].transform("mean")
    x, y = ((both[name] - means[name]).to_numpy() for name in ("load", "effect"))
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # not defined; scipy would warn
        return float("nan"), float("nan")
    found = stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)  # type: ignore[attr-defined]
