"""Is the use of experts more than chance? Every measure with its interval, nulls and q-values.

Per projection, each measure of `MEASURES` is computed on all texts, on all but one fold at a time
(the interval, see `interp.statistics.jackknife`; folds are whole units, so that what is left out is
independent of what stays), and on what the nulls give (`interp.experts.routing.nulls`). q-values
are Benjamini–Hochberg over the projections, for each measure and null by itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.routing.by_expert import expert_table
from interp.experts.routing.measure_list import MEASURES, TASK_MEASURES, counts_of, random_counts
from interp.experts.routing.nulls import p_value, permuted_texts, permuted_within_token
from interp.experts.routing.records import RoutingRecords
from interp.figures.routing import measure_figure
from interp.files import read_table
from interp.files.documents import write_table
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
        rows = []
        for names, part in self.table.groupby(["measure", "null"], sort=False):
            measure, null = cast(tuple[str, str], names)
            rows.append(
                {
                    "measure": measure,
                    "null": null,
                    "value": part["value"].mean(),
                    "null_mean": part["null_mean"].mean(),
                    "projections": int(part["value"].notna().sum()),
                    "significant": int((part["q_value"] <= fdr).sum()),
                }
            )
        return pd.DataFrame(rows)

    def plot(self, measure: str = "task_information", **options: Any) -> go.Figure:
        """A measure by depth with its interval, over its nulls."""
        units = {name: one.unit for name, one in MEASURES.items()}
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
        places = ("layer", "target", "p_value", "q_value")
        texts, numbers = {"target", "measure", "null", "task"}, {"p_value", "q_value"}
        wanted = {
            "specialization.csv": (*places, "measure", "null", "value", "null_mean"),
            "routing.csv": (*places, "expert", "task", "specialization"),
        }
        numbers |= {"value", "null_mean", "specialization"}
        tables = [
            read_table(
                Path(folder) / name,
                texts=[one for one in columns if one in texts],
                numbers=[one for one in columns if one in numbers],
                counts=[one for one in columns if one in ("layer", "expert")],
                others=True,
            )
            for name, columns in wanted.items()
        ]
        return cls(*tables)


@checked
def measure_specialization(
    records: RoutingRecords,
    *,
    draws: int = DRAWS,
    token_draws: int = TOKEN_DRAWS,
    seed: int = 0,
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
    for number, one in enumerate(records.projections):
        whole = counts_of(records, number)
        without = [counts_of(records, number, without=fold) for fold in range(records.sizes.folds)]
        random = random_counts(records, number)
        nulls = {
            "texts": texts[:, number, :, : one.experts],
            "within_token": within[:, number, :, : one.experts],
        }
        for name, measure in MEASURES.items():
            value = measure.of(whole)
            low, high = jackknife(value, np.array([measure.of(part) for part in without]))
            row = {
                "measure": name,
                "layer": one.layer,
                "target": one.target,
                "value": value,
                "ci_low": max(low, measure.least),
                "ci_high": min(high, measure.most),
            }
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
    return Specialization(table, expert_table(records, texts))


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
