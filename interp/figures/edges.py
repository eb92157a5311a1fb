"""Edges as a heat map: who writes, and who reads it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from interp.figures.theme import (
    INK,
    ZERO_LINE,
    cells,
    centred,
    colour_bar,
    label,
    signed_bars,
    themed,
)
from interp.lazy import go, pd


def edge_heatmap(
    scores: Float[np.ndarray, "writer reader"],
    writers: Sequence[str],
    readers: Sequence[str],
    *,
    n: int,
    metric: str,
    title: str,
) -> "go.Figure":
    """Scores of edges, y = writer, x = reader, in the order in which they run.

    Args:
        scores: NaN for pairs that are no edge.
        n: at most so many writers and readers: those with the largest absolute score.
        metric: the unit of the scores.
    """
    size = np.nan_to_num(np.abs(scores))
    rows = np.sort(np.argsort(-size.max(axis=1), kind="stable")[:n])
    columns = np.sort(np.argsort(-size.max(axis=0), kind="stable")[:n])
    grid = scores[np.ix_(rows, columns)]
    figure = go.Figure()
    figure.add_heatmap(
        x=[label(readers[column]) for column in columns],
        y=[label(writers[row]) for row in rows],
        z=cells(grid),
        **centred(float(size.max()) or 1.0),
        hoverongaps=False,
        colorbar=colour_bar(f"score ({label(metric)})"),
        hovertemplate="<b>%{y} → %{x}</b><br>score %{z:.4g}<extra></extra>",
    )
    figure.update_xaxes(title_text="reader", type="category", tickangle=-60)
    figure.update_yaxes(title_text="writer", type="category", autorange="reversed")
    return themed(
        figure,
        title={"text": label(title)},
        width=220 + 16 * len(columns),
        height=220 + 16 * len(rows),
    )


def contribution_bars(
    table: "pd.DataFrame", *, title: str | None = None, mark: str | None = None
) -> "go.Figure":
    """Contributions to a logit as bars, the largest on top.

    Args:
        table: columns ``component`` and ``logits``.
        mark: the component whose bar is framed.
    """
    figure = go.Figure()
    values = table["logits"].tolist()
    frame = [2.5 if name == mark else 0 for name in table["component"]]
    figure.add_bar(
        x=values,
        y=[label(name) for name in table["component"]],
        orientation="h",
        marker={**signed_bars(values), "line": {"color": INK, "width": frame}},
        hovertemplate="<b>%{y}</b><br>%{x:.4g} logits<extra></extra>",
    )
    figure.update_xaxes(title_text="logits", **ZERO_LINE)
    figure.update_yaxes(type="category", autorange="reversed")
    return themed(
        figure,
        title={"text": label(title or "direct contributions to the logits")},
        width=620,
        height=140 + 18 * len(table),
    )
