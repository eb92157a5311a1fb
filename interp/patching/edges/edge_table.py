"""Edges and their scores as a table, with intervals of the first."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.lazy import pd
from interp.patching.edges.graph import Edge
from interp.statistics.significance import MINIMUM_GROUPS, effect_statistics

INTERVALS = 1000
"""Edges for which a table has intervals, the largest first."""


def edge_table(
    edges: Sequence[Edge],
    scores: Float[np.ndarray, " edge"],
    first: Float[Tensor, "prompt edge"],
    *,
    groups: Sequence[str],
    seed: int,
) -> "pd.DataFrame":
    """One row an edge, in the order that they are given in.

    Columns: ``writer``, ``reader``, ``score``, ``ci_low`` and ``ci_high`` (with at least
    ``MINIMUM_GROUPS`` groups), ``rank``.

    Args:
        scores: mean over groups.
        first: scores per prompt of the first edges, those that get an interval.
        groups: of each prompt.
        seed: of the intervals.
    """
    frame = pd.DataFrame(
        {
            "writer": np.array([writer for writer, _ in edges], dtype=str),
            "reader": np.array([reader for _, reader in edges], dtype=str),
            "score": scores,
            "ci_low": np.nan,
            "ci_high": np.nan,
            "rank": np.arange(1, len(edges) + 1),
        }
    )
    if first.shape[1] and len(set(groups)) >= MINIMUM_GROUPS:
        found = effect_statistics(first, groups, seed=seed, resolution=0.0)
        frame.loc[: first.shape[1] - 1, "ci_low"] = found.ci_low
        frame.loc[: first.shape[1] - 1, "ci_high"] = found.ci_high
    return frame
