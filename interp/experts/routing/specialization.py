"""Measures of how experts specialize, with intervals, nulls and q-values.

Per projection, each measure of `MEASURES` is computed on all texts, on all but one fold at a time
(the interval, see `interp.statistics.jackknife`; folds are whole units, so that what is left out is
independent of what stays), and on what the nulls give (`interp.experts.routing.nulls`). q-values
are Benjamini–Hochberg over the projections, for each measure and null by itself.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Int

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.routing.measure_list import (
    MEASURES,
    TASK_MEASURES,
    counts_and_folds,
    random_counts,
)
from interp.experts.routing.measures import domain_specialization
from interp.experts.routing.nulls import p_value, permuted_texts, permuted_within_token
from interp.experts.routing.records import RoutingRecords
from interp.figures.routing import measure_figure
from interp.files.documents import write_table
from interp.files.tables import read_table
from interp.statistics.jackknife import jackknife
from interp.statistics.significance import q_values

FDR = 0.05
DRAWS = 999
TOKEN_DRAWS = 199


@dataclass(frozen=True, eq=False)
class Specialization(Displayed):
    """Every measure of every projection, and every expert's share of every task.

    Attributes:
        table: one row for each measure, projection and null: measure, layer, target, value, ci_low,
            ci_high, null, null_mean, null_p95, draws, p_value, q_value.
        experts: one row for each projection, expert and task: what `RoutingRecords.to_dataframe`
            says of a task, with ci_low and ci_high of the specialization, its difference from all
            tokens', and p_value and q_value of that by the null of whole texts.
    """

    table: pd.DataFrame
    experts: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table of measures."""
        return self.table.copy()

    def summary(self, *, fdr: float = FDR) -> pd.DataFrame:
        """One row a measure and null: means over projections, and how many are significant.

        Columns: measure, null, value, null_mean, projections, significant.
        """
        table = self.table.assign(
            projections=self.table["value"].notna(), significant=self.table["q_value"] <= fdr
        )
        groups: Any = table.groupby(["measure", "null"], sort=False)
        means, counts = ["value", "null_mean"], ["projections", "significant"]
        of_group = dict.fromkeys(means, "mean") | dict.fromkeys(counts, "sum")
        return groups.agg(of_group).reset_index()

    def plot(self, measure: str = "task_information", **options: Any) -> go.Figure:
        """A measure by depth with its interval, over its nulls."""
        units = {name: measure.unit for name, measure in MEASURES.items()}
        return measure_figure(self.table, measure, units=units, **options)

    def _shown(self) -> Shown:
        words = "Measures of specialization, means over projections, beside their nulls."
        return Shown(words, (self.summary(),), self.plot)

    def save(self, folder: str | Path) -> Path:
        """Write ``specialization.csv`` and ``routing.csv`` into a directory."""
        folder = Path(folder)
        write_table(folder / "specialization.csv", self.table)
        write_table(folder / "routing.csv", self.experts)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Specialization":
        """Read what `save` wrote. Raises UserError if it is not there."""
        folder = Path(folder)
        table = read_table(
            folder / "specialization.csv",
            texts=("target", "measure", "null"),
            numbers=("p_value", "q_value", "value", "null_mean"),
            counts=("layer",),
            others=True,
        )
        experts = read_table(
            folder / "routing.csv",
            texts=("target", "task"),
            numbers=("p_value", "q_value", "specialization"),
            counts=("layer", "expert"),
            others=True,
        )
        return cls(table, experts)


@checked
def measure_specialization(
    records: RoutingRecords, *, draws: int = DRAWS, token_draws: int = TOKEN_DRAWS, seed: int = 0
) -> Specialization:
    """Every measure with its interval and nulls.

    Args:
        draws: of the null over whole texts.
        token_draws: of the null within token ids, the slow one; 0 leaves it out.
        seed: of both. The untrained routers were drawn when the records were made.
    """
    if draws < 1 or token_draws < 0:
        raise UserError(f"draws is {draws} and token_draws {token_draws}: at least 1 and 0")
    texts = permuted_texts(records, draws=draws, seed=seed)
    within = permuted_within_token(records, draws=token_draws, seed=seed)
    rows: list[dict[str, Any]] = []
    for number, projection in enumerate(records.projections):
        whole, *without = counts_and_folds(records, number)
        random = random_counts(records, number)
        nulls = {
            "texts": texts[:, number, :, : projection.n_experts],
            "within_token": within[:, number, :, : projection.n_experts],
        }
        for name, measure in MEASURES.items():
            value = measure.of(whole)
            low, high = jackknife(value, np.array([measure.of(part) for part in without]))
            row = {"measure": name, "layer": projection.layer, "target": projection.target}
            row |= {"value": value, "ci_low": max(low, measure.least)}
            row |= {"ci_high": min(high, measure.most)}
            drawn = {"untrained": np.array([measure.of(part) for part in random])}
            if name in TASK_MEASURES:
                of_task = TASK_MEASURES[name]
                drawn |= {
                    null: np.asarray(of_task(counts.astype(float), records.sizes.top_k))
                    for null, counts in nulls.items()
                    if len(counts)
                }
            for null, values in drawn.items():
                rows.append({**row, "null": null, **_against(value, values, measure.alternative)})
    table = pd.DataFrame(rows)
    table["q_value"] = np.nan
    for _, part in table.groupby(["measure", "null"]):
        table.loc[part.index, "q_value"] = q_values(part["p_value"].to_numpy())
    return Specialization(table, _expert_table(records, texts))


def _against(value: float, values: np.ndarray, alternative: Any) -> dict[str, Any]:
    """What a null says of a value."""
    values = values[~np.isnan(values)]
    if not len(values):
        return {"null_mean": np.nan, "null_p95": np.nan, "draws": 0, "p_value": np.nan}
    return {
        "null_mean": float(values.mean()),
        "null_p95": float(np.quantile(values, 0.95)),
        "draws": len(values),
        "p_value": float(p_value(np.array(value), values, alternative)),
    }


def _expert_table(
    records: RoutingRecords, texts: Int[np.ndarray, "draw projection task expert"]
) -> pd.DataFrame:
    """`RoutingRecords.to_dataframe` without the task "all", and with these columns:

    ci_low, ci_high (jackknife, of the specialization), difference (specialization less that of all
    tokens together), p_value (two-sided, the tasks' names dealt anew to whole texts: `texts`),
    q_value (over all rows of the table).
    """
    share = partial(domain_specialization, top_k=records.sizes.top_k)
    parts = []
    whole = records.to_dataframe()
    rows = whole.loc[whole["task"] != "all"].reset_index(drop=True)
    for number, projection in enumerate(records.projections):
        counts, *without = (part.task for part in counts_and_folds(records, number))
        value, together = share(counts), share(counts.sum(axis=0))
        low, high = jackknife(value, np.stack([share(part) for part in without]))
        null = share(texts[:, number, :, : projection.n_experts].astype(float))
        found = p_value(value - together, null - together, "two-sided")
        columns = {
            "ci_low": np.maximum(low, 0.0),
            "ci_high": np.minimum(high, 1.0),
            "difference": value - together,
            "p_value": found,
        }
        parts.append(pd.DataFrame({name: column.ravel() for name, column in columns.items()}))
    table = pd.concat([rows, pd.concat(parts, ignore_index=True)], axis=1)
    table["q_value"] = q_values(table["p_value"].to_numpy())
    return table
