"""Figures of several relations: the best heads in each, and scores of one on another."""

import numpy as np

from interp.figures.tables import where
from interp.figures.theme import SEQUENTIAL, cells, centred, colour_bar, label, themed
from interp.lazy import go, pd

SHOWN_HEADS = 24
MIXED = "(mixed)"
"""The name of the rows about all relations together, in ``heads_by_relation.csv``."""


def heads_by_relation(table: "pd.DataFrame", *, count: int = SHOWN_HEADS) -> "go.Figure":
    """The best heads (columns) in each relation (rows): effects as shares of the largest there.

    Args:
        table: a table with the columns of `heads_by_relation.csv`, of one site.
        count: how many heads are shown: those with the largest mean share over the relations.
    """
    mixed = where(table, table["relation"] == MIXED).sort_values("rank").head(count)
    heads = list(zip(mixed["layer"], mixed["head"], strict=True))
    names = list(dict.fromkeys(table["relation"]))
    keys = zip(table["relation"], table["layer"], table["head"], strict=True)
    shares = dict(zip(keys, table["share"], strict=True))
    grid = np.array([[shares[(name, *head)] for head in heads] for name in names], dtype=float)
    figure = go.Figure()
    figure.add_heatmap(
        x=[f"{layer}.{head}" for layer, head in heads],
        y=[label(name) for name in names],
        z=cells(grid),
        **centred(1.0),
        colorbar=colour_bar("share of the relation's largest effect"),
        hovertemplate="<b>%{y}, head %{x}</b><br>share %{z:.2f}<extra></extra>",
    )
    return _named_axes(figure, n_rows=len(names), n_columns=len(heads), x="layer.head")


def transfer_matrix(table: "pd.DataFrame", *, value: str, title: str) -> "go.Figure":
    """One value for each pair of what was searched (rows) and what was scored (columns).

    Args:
        table: a table with the columns ``searched``, ``scored``, ``value`` and its interval
            ``value_low``, ``value_high``; pairs that are missing stay empty.
        value: the column that is drawn, between 0 and 1.
        title: what the value is.
    """
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("searched", "scored"))
    found = table.set_index(["searched", "scored"])
    grid, hover = np.full((2, len(rows), len(columns)), np.nan), []
    for i, searched in enumerate(rows):
        hover.append(["" for _ in columns])
        for j, scored in enumerate(columns):
            if (searched, scored) in found.index:
                row = found.loc[(searched, scored)]
                grid[0, i, j] = row[value]
                hover[i][j] = f"[{row[f'{value}_low']:.2f}, {row[f'{value}_high']:.2f}]"
    figure = go.Figure()
    figure.add_heatmap(
        x=[label(name) for name in columns],
        y=[label(name) for name in rows],
        z=cells(grid[0]),
        customdata=hover,
        colorscale=[list(stop) for stop in SEQUENTIAL],
        **{"zmin": 0, "zmax": 1, "xgap": 1, "ygap": 1, "hoverongaps": False},
        texttemplate="%{z:.2f}",
        textfont={"size": 10},
        colorbar=colour_bar(label(title)),
        hovertemplate="<b>%{y} → %{x}</b><br>%{z:.2f} %{customdata}<extra></extra>",
    )
    figure = _named_axes(figure, n_rows=len(rows), n_columns=len(columns), x="scored")
    return figure.update_yaxes(title_text="searched")


def _named_axes(figure: "go.Figure", *, n_rows: int, n_columns: int, x: str) -> "go.Figure":
    """The layout of a map whose rows and columns have names: the first row on top."""
    themed(
        figure,
        width=max(480, min(1200, 44 * n_columns + 260)),
        height=max(240, 26 * n_rows + 140),
        margin={"l": 120, "r": 14, "t": 24, "b": 90},
    )
    axis = {"type": "category", "showgrid": False, "showline": False}
    figure.update_xaxes(title_text=x, tickangle=-45, **axis)
    return figure.update_yaxes(autorange="reversed", automargin=True, **axis)
