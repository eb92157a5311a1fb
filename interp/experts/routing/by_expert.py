"""Which expert is used more, or less, for which task: every difference with a test."""

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.experts.routing.measure_list import counts_of
from interp.experts.routing.measures import domain_specialization
from interp.experts.routing.nulls import p_value
from interp.experts.routing.records import RoutingRecords
from interp.statistics.jackknife import jackknife
from interp.statistics.significance import q_values


def expert_table(
    records: RoutingRecords, texts: Int[np.ndarray, "draw projection task expert"]
) -> pd.DataFrame:
    """`RoutingRecords.to_dataframe` without the task "all", and with these columns:

    ci_low, ci_high (jackknife, of the specialization), difference (specialization less that of all
    tokens together), p_value (two-sided, the tasks' names dealt anew to whole texts: `texts`),
    q_value (over all rows of the table).
    """
    top_k = records.sizes.top_k
    parts = []
    whole = records.to_dataframe()
    rows = whole.loc[whole["task"] != "all"].reset_index(drop=True)
    for number, one in enumerate(records.projections):
        counts = counts_of(records, number).task
        value = domain_specialization(counts, top_k=top_k)
        without = np.stack(
            [
                domain_specialization(counts_of(records, number, without=fold).task, top_k=top_k)
                for fold in range(records.sizes.folds)
            ]
        )
        low, high = jackknife(value, without)
        together = domain_specialization(counts.sum(axis=0), top_k=top_k)
        null = domain_specialization(
            texts[:, number, :, : one.n_experts].astype(float), top_k=top_k
        )
        found = p_value(value - together, null - together, "two-sided")
        parts.append(
            pd.DataFrame(
                {
                    "ci_low": np.maximum(low, 0.0).ravel(),
                    "ci_high": np.minimum(high, 1.0).ravel(),
                    "difference": (value - together).ravel(),
                    "p_value": found.ravel(),
                }
            )
        )
    table = pd.concat([rows, pd.concat(parts, ignore_index=True)], axis=1)
    table["q_value"] = q_values(table["p_value"].to_numpy())
    return table
