"""Figures of how experts are used: loads by task, entropy by depth, measures over their nulls.

Loads are times the number of experts, so that 1 is an even share: purple below, orange above.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import UserError
from interp.figures.tables import where
from interp.figures.theme import CATEGORIES, DIVERGING, MUTED, SYMBOLS, THEME, label, whiskers

MAX_TASKS = 8
NULL_NAMES = {
    "texts": "tasks dealt anew to texts",
    "within_token": "tasks shuffled within token ids",
    "untrained": "untrained routers",
}
_DASHES = {"texts": "dot", "within_token": "dashdot", "untrained": "dash"}
_ABOVE = {"y": 1.02, "yanchor": "bottom"}


def load_figure(
    table: pd.DataFrame,
    tasks: Sequence[str],
    *,
    target: str | None = None,
    title: str | None = None,
) -> go.Figure:
    """Heat maps layer × expert of the load, one for each task and one for all, on one scale.

    Args:
        table: as `RoutingRecords.to_dataframe` gives it, with a task "all" for all tokens.
        tasks: the tasks, of which the first ``MAX_TASKS`` are drawn.
        target: names the projections (``q_proj``); it may be left out where there is one kind only.

    Raises:
        UserError: an unknown target.
    """
    target = _one_target(table, target)
    table = where(table, table["target"] == target)
    tasks = ["all", *tasks[:MAX_TASKS]]
    layers = sorted(int(layer) for layer in table["layer"].unique())
    experts = list(range(int(table["expert"].max()) + 1))
    count = table.groupby("layer")["expert"].nunique()
    figure = make_subplots(
        rows=1,
        cols=len(tasks),
        shared_yaxes=True,
        horizontal_spacing=0.015,
        subplot_titles=[label(task) for task in tasks],
    )
    limit = 2.0
    for column, task in enumerate(tasks, start=1):
        part = where(table, table["task"] == task)
        grid = part.pivot(index="layer", columns="expert", values="load")
        grid = grid.mul(count, axis=0).reindex(index=layers, columns=experts)
        limit = max(limit, float(np.nanmax(grid.to_numpy(), initial=0.0)))
        figure.add_heatmap(
            row=1,
            col=column,
            x=experts,
            y=layers,
            z=[
                [None if np.isnan(cell) else float(cell) for cell in row] for row in grid.to_numpy()
            ],
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate=(
                f"<b>layer %{{y}}, expert %{{x}}</b><br>{label(task)}: %{{z:.3g}} times an even "
                "share<extra></extra>"
            ),
        )
    cell = min(24, max(12, 560 // len(layers)))
    figure.update_layout(
        template=THEME,
        width=max(420, min(1400, len(tasks) * (len(experts) * 18 + 26) + 150)),
        height=len(layers) * cell + 170,
        margin={"l": 56, "r": 14, "t": 92, "b": 56},
        title={"text": label(title or f"{target}: load of each expert")},
        # White at an even share: the scale's middle is at 1, its ends at none and at the most.
        coloraxis={
            "colorscale": _centred_at(1.0 / limit),
            "cmin": 0.0,
            "cmax": limit,
            "colorbar": {
                "title": {"text": "load (1: even)", "side": "right", "font": {"size": 12}},
                "thickness": 10,
                "outlinewidth": 0,
            },
        },
    )
    figure.update_annotations(font_size=12)
    figure.update_xaxes(title_text="expert", showgrid=False, dtick=1 if len(experts) <= 8 else None)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_yaxes(title_text="layer", col=1)


def entropy_figure(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """By depth: the mean entropy of the router's softmax, and the entropy of the load it makes.

    Both as shares of log E: 1 is even. A confident router that uses all experts has a low entropy
    per token and a high one of the load. `table` as `RoutingRecords.entropies` gives it.
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
    figure.update_layout(
        template=THEME, height=400, legend=_ABOVE, title={"text": label(title)} if title else None
    )
    figure.update_xaxes(title_text="layer")
    return figure.update_yaxes(title_text="entropy (share of log E)")


def measure_figure(
    table: pd.DataFrame,
    measure: str = "task_information",
    *,
    units: Mapping[str, str] = MappingProxyType({}),
    title: str | None = None,
) -> go.Figure:
    """A measure by depth with its interval, and the mean of each null as a line behind it.

    Args:
        table: as `Specialization.to_dataframe` gives it.
        units: the unit of each measure; one that is not there is drawn without.

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
            error_y=whiskers(
                part["value"], part["ci_low"], part["ci_high"], thickness=1.2, width=3
            ),
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
    figure.update_layout(
        template=THEME, height=430, legend=_ABOVE, title={"text": label(title)} if title else None
    )
    figure.update_xaxes(title_text="layer")
    return figure.update_yaxes(title_text=f"{name} ({unit})" if unit else name)


def similarity_figure(table: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """By depth: means over pairs of experts of the outputs' cosine and CKA, and CKA by chance.

    `table` as `OutputSimilarity.by_projection` gives it.
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
                y=[None if np.isnan(one) else float(one) for one in part[column]],
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
    figure.update_layout(
        template=THEME, height=400, legend=_ABOVE, title={"text": label(title)} if title else None
    )
    figure.update_xaxes(title_text="layer")
    return figure.update_yaxes(title_text="similarity of two experts' outputs")


def _one_target(table: pd.DataFrame, target: str | None) -> str:
    known = [str(name) for name in table["target"].unique()]
    if target is None and len(known) == 1:
        return known[0]
    if target not in known:
        raise UserError(f"name one kind of projection with target=: {', '.join(known)}")
    return str(target)


def _centred_at(middle: float) -> list[list[float | str]]:
    """The diverging scale with its white at a share `middle` of the way."""
    return [
        [2 * at * middle if at <= 0.5 else middle + (2 * at - 1) * (1 - middle), colour]
        for at, colour in DIVERGING
    ]
