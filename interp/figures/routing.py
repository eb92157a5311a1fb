"""Figures of how experts are used: loads by task, entropy by depth, measures over their nulls.

Loads are multiplied by the number of experts: 1 is an even share, purple is below, orange above.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import UserError
from interp.figures.tables import where
from interp.figures.theme import (
    CATEGORIES,
    DIVERGING,
    LEGEND_ABOVE,
    MUTED,
    SYMBOLS,
    cells,
    colour_bar,
    interval_bars,
    label,
    themed,
)

MAX_TASKS = 8
NULL_NAMES = {
    "texts": "tasks dealt anew to texts",
    "within_token": "tasks shuffled within token ids",
    "untrained": "untrained routers",
}
_DASHES = {"texts": "dot", "within_token": "dashdot", "untrained": "dash"}


def load_figure(
    table: pd.DataFrame,
    tasks: Sequence[str],
    *,
    target: str | None = None,
    title: str | None = None,
) -> go.Figure:
    """Heat maps layer × expert of the load, one for each task and one for all, on one scale.

    Args:
        table: as `RoutingRecords.to_dataframe` returns it, with a task "all" for all tokens.
        tasks: the tasks, of which the first ``MAX_TASKS`` are drawn.
        target: the projections (``q_proj``); optional where there is one kind only.

    Raises:
        UserError: an unknown target.
    """
    target = _one_target(table, target)
    tasks = ["all", *tasks[:MAX_TASKS]]
    grids = _loads(where(table, table["target"] == target), tasks)
    n_layers, n_experts = grids[0].shape
    figure = make_subplots(
        rows=1,
        cols=len(tasks),
        shared_yaxes=True,
        horizontal_spacing=0.015,
        subplot_titles=[label(task) for task in tasks],
    )
    for column, (task, grid) in enumerate(zip(tasks, grids, strict=True), start=1):
        figure.add_heatmap(
            **{"row": 1, "col": column, "xgap": 1, "ygap": 1, "hoverongaps": False},
            x=grid.columns.tolist(),
            y=grid.index.tolist(),
            z=cells(grid.to_numpy()),
            coloraxis="coloraxis",
            hovertemplate=(
                f"<b>layer %{{y}}, expert %{{x}}</b><br>{label(task)}: %{{z:.3g}} times an even "
                "share<extra></extra>"
            ),
        )
    limit = max(2.0, *(float(np.nanmax(grid.to_numpy(), initial=0.0)) for grid in grids))
    # White at an even share: the scale's middle is at 1, its ends at 0 and at the largest load.
    scale = {"colorscale": _centred_at(1.0 / limit), "cmin": 0.0, "cmax": limit}
    themed(
        figure,
        width=max(420, min(1400, len(tasks) * (n_experts * 18 + 26) + 150)),
        height=n_layers * min(24, max(12, 560 // n_layers)) + 170,
        margin={"l": 56, "r": 14, "t": 92, "b": 56},
        title={"text": label(title or f"{target}: load of each expert")},
        coloraxis={**scale, "colorbar": colour_bar("load (1: even)", size=12, outlinewidth=0)},
    )
    figure.update_annotations(font_size=12)
    figure.update_xaxes(title_text="expert", showgrid=False, dtick=1 if n_experts <= 8 else None)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_yaxes(title_text="layer", col=1)


def _loads(table: pd.DataFrame, tasks: Sequence[str]) -> list[pd.DataFrame]:
    """For each task the loads layer × expert, as multiples of an even share."""
    layers = sorted(int(layer) for layer in table["layer"].unique())
    experts = list(range(int(table["expert"].max()) + 1))
    count = table.groupby("layer")["expert"].nunique()
    grids = []
    for task in tasks:
        part = where(table, table["task"] == task)
        grid = part.pivot(index="layer", columns="expert", values="load").mul(count, axis=0)
        grids.append(grid.reindex(index=layers, columns=experts))
    return grids


def entropy_figure(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """By layer: the mean entropy of the router's softmax per token, and the entropy of the load.

    Both are shares of log E, where 1 is even. A confident router that uses all experts has a low
    entropy per token and a high entropy of the load. `table` as `RoutingRecords.entropies` returns
    it.
    """
    figure = go.Figure()
    for colour, target in enumerate(table["target"].unique()):
        part = where(table, table["target"] == target)
        for column, what, dash in (
            ("per_token", "per token", "solid"),
            ("of_load", "of the load", "dot"),
        ):
            figure.add_scatter(
                x=part["layer"].tolist(),
                y=part[column].tolist(),
                mode="lines+markers",
                name=label(f"{target}, {what}"),
                line={"color": CATEGORIES[colour % len(CATEGORIES)], "width": 2, "dash": dash},
                marker={"symbol": SYMBOLS[colour % len(SYMBOLS)], "size": 6},
                hovertemplate=f"layer %{{x}}: %{{y:.4f}}<extra>{label(target)}, {what}</extra>",
            )
    return _by_layer(figure, "entropy (share of log E)", height=400, title=title)


def measure_figure(
    table: pd.DataFrame,
    measure: str = "task_information",
    *,
    units: Mapping[str, str] = MappingProxyType({}),
    title: str | None = None,
) -> go.Figure:
    """A measure by layer with its interval, and the mean of each null as a line behind it.

    Args:
        table: as `Specialization.to_dataframe` returns it.
        units: the unit of each measure that has one.

    Raises:
        UserError: an unknown measure.
    """
    known = [str(name) for name in table["measure"].unique()]
    if measure not in known:
        raise UserError(f"unknown measure {measure!r}; known: {', '.join(known)}")
    table = where(table, table["measure"] == measure)
    figure = go.Figure()
    nulls = [str(null) for null in table["null"].unique()]
    for colour, target in enumerate(table["target"].unique()):
        of_target = where(table, table["target"] == target)
        line = {"color": CATEGORIES[colour % len(CATEGORIES)]}
        part = where(of_target, of_target["null"] == nulls[0])
        figure.add_scatter(
            x=part["layer"].tolist(),
            y=part["value"].tolist(),
            error_y=interval_bars(part, "value", thickness=1.2, width=3),
            mode="lines+markers",
            name=label(target),
            line={**line, "width": 2},
            marker={"symbol": SYMBOLS[colour % len(SYMBOLS)], "size": 7},
            hovertemplate=f"layer %{{x}}: %{{y:.4g}}<extra>{label(target)}</extra>",
        )
        for null in nulls:
            part = where(of_target, of_target["null"] == null)
            if part["null_mean"].isna().all():
                continue
            figure.add_scatter(
                x=part["layer"].tolist(),
                y=part["null_mean"].tolist(),
                mode="lines",
                name=label(f"{target}: {NULL_NAMES.get(null, null)}"),
                line={**line, "width": 1.2, "dash": _DASHES.get(null, "dot")},
                customdata=part[["null_p95", "q_value"]].to_numpy(dtype=float).tolist(),
                hovertemplate=(
                    "layer %{x}: mean %{y:.4g}, 95 % below %{customdata[0]:.4g}; "
                    f"q %{{customdata[1]:.3g}}<extra>{label(NULL_NAMES.get(null, null))}</extra>"
                ),
            )
    unit = units.get(measure)
    name = measure.replace("_", " ")
    return _by_layer(figure, f"{name} ({unit})" if unit else name, height=430, title=title)


def similarity_figure(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """By layer: mean cosine and CKA of the outputs over pairs of experts, and CKA by chance.

    `table` as `OutputSimilarity.by_projection` returns it.
    """
    figure = go.Figure()
    styles = (("cosine", "solid"), ("cka", "dash"), ("cka_chance", "dot"))
    names = {"cosine": "cosine", "cka": "CKA", "cka_chance": "CKA by chance"}
    for colour, target in enumerate(table["target"].unique()):
        part = where(table, table["target"] == target)
        for column, dash in styles:
            chance = column == "cka_chance"
            figure.add_scatter(
                x=part["layer"].tolist(),
                y=cells(part[[column]].to_numpy().T)[0],
                mode="lines" if chance else "lines+markers",
                name=label(f"{target}, {names[column]}"),
                marker={"symbol": SYMBOLS[colour % len(SYMBOLS)], "size": 6},
                line={
                    "color": MUTED if chance else CATEGORIES[colour % len(CATEGORIES)],
                    "width": 1.2 if chance else 2,
                    "dash": dash,
                },
                hovertemplate=f"layer %{{x}}: %{{y:.3f}}<extra>{names[column]}</extra>",
            )
    return _by_layer(figure, "similarity of two experts' outputs", height=400, title=title)


def _by_layer(figure: go.Figure, y: str, *, height: int, title: str | None) -> go.Figure:
    """The layout of a figure whose x axis is the layer."""
    shown = {"text": label(title)} if title else None
    themed(figure, height=height, legend=LEGEND_ABOVE, title=shown)
    figure.update_xaxes(title_text="layer")
    return figure.update_yaxes(title_text=y)


def _one_target(table: pd.DataFrame, target: str | None) -> str:
    known = [str(name) for name in table["target"].unique()]
    if target is None and len(known) == 1:
        return known[0]
    if target not in known:
        raise UserError(f"name one kind of projection with target=: {', '.join(known)}")
    return str(target)


def _centred_at(middle: float) -> list[list[float | str]]:
    """The diverging scale with white at a share `middle` of its length."""
    return [
        [2 * at * middle if at <= 0.5 else middle + (2 * at - 1) * (1 - middle), colour]
        for at, colour in DIVERGING
    ]
