"""Figures of a patching result, and of a faithfulness curve.

Which figure fits a result depends on its axes:

* layer × head: the head heat map, with what is not significant faded;
* layer × position, or layer × span: a heat map on a scale centred at zero;
* one axis: a line with its 95 % interval;
* layer × head × span: a small heat map for each span, on one scale;
* layer × head × position: at each layer and position the head with the largest absolute effect.

A positive effect means that the patch moves the metric up from the corrupted run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from interp.errors import UserError
from interp.figures.evaluation import method_agreement
from interp.figures.heatmap import head_heatmap
from interp.figures.theme import CONSTRAINED, DIVERGING, MUTED, THEME, label, whiskers

MAX_PANELS = 8
_TITLES = {"kv_head": "key/value head", "head": "head", "layer": "layer"}
_HEADS = ("head", "kv_head")
Names = Mapping[str, Sequence[int | str]]
"""The name of each unit along each axis."""


def result_figure(
    effects: Float[np.ndarray, "..."],
    table: pd.DataFrame,
    *,
    names: Names,
    component: str,
    metric: str,
    title: str,
    fdr: float = 0.05,
) -> go.Figure:
    """The figure that fits the result's axes.

    Args:
        effects: mean effect of each unit; NaN where it was not measured.
        table: as ``PatchEffects.to_dataframe`` gives it, with each unit's interval and q-value.
        names: each axis of ``effects``, in order, with the names of the units along it.
        component: what was patched.
        metric: the unit of the effects.
        fdr: the q-value up to which an effect counts as significant.

    Raises:
        UserError: axes for which there is no figure.
    """
    axes = tuple(names)
    if len(axes) == 1:
        figure = _line(table, axes[0], names[axes[0]], metric)
    elif len(axes) == 2:
        if axes[1] in _HEADS and not table["q_value"].isna().all():
            heads = table.rename(columns={axes[1]: "head"}).assign(site=component, selected=False)
            figure = head_heatmap(heads, fdr=fdr, title=title, unit=metric)
            return figure.update_xaxes(title_text=_TITLES[axes[1]])
        figure = _panels([("", effects)], names, axes[0], axes[1], metric)
    elif len(axes) == 3 and axes[1] in _HEADS and axes[2] == "span":
        spans = list(names["span"])[:MAX_PANELS]
        grids = [(str(span), effects[..., i]) for i, span in enumerate(spans)]
        figure = _panels(grids, names, axes[0], axes[1], metric)
    elif len(axes) == 3 and axes[1] in _HEADS:
        figure = _panels([("", _strongest(effects))], names, axes[0], axes[2], metric)
    else:
        raise UserError(f"there is no figure for the axes {', '.join(axes)}: use to_dataframe()")
    return figure.update_layout(title={"text": label(title)})


def _strongest(grid: np.ndarray) -> np.ndarray:
    """Of [layer head position] the head with the largest absolute effect, [layer position]."""
    filled = np.where(np.isnan(grid), 0.0, grid)
    at = np.abs(filled).argmax(axis=1)[:, None]
    chosen = np.take_along_axis(filled, at, axis=1)[:, 0]
    return np.where(np.isnan(grid).all(axis=1), np.nan, chosen)


def _panels(
    grids: list[tuple[str, np.ndarray]], names: Names, y: str, x: str, metric: str
) -> go.Figure:
    """Heat maps side by side, row = ``y`` (0 on top), on one scale centred at zero."""
    figure = make_subplots(
        rows=1,
        cols=len(grids),
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=[label(name) for name, _ in grids] if len(grids) > 1 else None,
    )
    known = [grid[~np.isnan(grid)] for _, grid in grids]
    limit = float(np.abs(np.concatenate(known)).max(initial=0.0)) or 1.0
    labels = {axis: [label(one) for one in names[axis]] for axis in (x, y)}
    for column, (_, grid) in enumerate(grids, start=1):
        figure.add_heatmap(
            row=1,
            col=column,
            x=labels[x],
            y=labels[y],
            z=[[None if np.isnan(cell) else float(cell) for cell in row] for row in grid],
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate=f"<b>{y} %{{y}}, {x} %{{x}}</b><br>effect %{{z:.4g}}<extra></extra>",
        )
    rows, columns = grids[0][1].shape
    cell = min(26, max(13, 620 // rows))
    figure.update_layout(
        template=THEME,
        width=max(420, min(1400, len(grids) * columns * 34 + 190)),
        height=rows * cell + 160,
        margin={"l": 56, "r": 14, "t": 76 if len(grids) > 1 else 52, "b": 56},
        coloraxis={
            "colorscale": [list(stop) for stop in DIVERGING],
            "cmin": -limit,
            "cmid": 0.0,
            "cmax": limit,
            "colorbar": {
                "title": {
                    "text": f"effect ({label(metric)})",
                    "side": "right",
                    "font": {"size": 12},
                },
                "thickness": 10,
                "outlinewidth": 0,
            },
        },
    )
    figure.update_xaxes(title_text=_TITLES.get(x, x), type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure.update_yaxes(title_text=_TITLES.get(y, y), col=1)


def _line(table: pd.DataFrame, axis: str, names: Sequence[int | str], metric: str) -> go.Figure:
    """Mean effect along one axis, with whiskers where there are intervals."""
    place = {name: index for index, name in enumerate(names)}
    rows = table.sort_values(axis, key=lambda column: column.map(place.__getitem__))
    reach: dict[str, Any] | None = None
    if not rows["ci_low"].isna().all():
        reach = whiskers(
            rows["effect"], rows["ci_low"], rows["ci_high"], color=MUTED, thickness=1.3
        )
    figure = go.Figure(
        go.Scatter(
            x=[label(name) for name in rows[axis]],
            y=rows["effect"].tolist(),
            error_y=reach,
            mode="lines+markers",
            line={"color": CONSTRAINED, "width": 2},
            hovertemplate=f"{axis} %{{x}}<br>effect %{{y:.4g}}<extra></extra>",
        )
    )
    figure.update_layout(template=THEME, height=380)
    figure.update_xaxes(title_text=_TITLES.get(axis, axis), type="category", showgrid=False)
    return figure.update_yaxes(
        title_text=f"effect ({label(metric)})", zeroline=True, zerolinecolor=MUTED
    )


def faithfulness_figure(
    table: pd.DataFrame,
    random_curves: Float[np.ndarray, "order proportion"],
    *,
    cpr: float,
    cmd: float,
    title: str | None = None,
) -> go.Figure:
    """Faithfulness over the share of nodes kept, with its interval, over random orders.

    Args:
        table: as ``Faithfulness.to_dataframe`` gives it.
        random_curves: faithfulness of circuits from random orders of the nodes.
        cpr, cmd: the areas under the curve and between it and one; they are the title.
        title: another title.
    """
    x = table["proportion"].tolist()
    figure = go.Figure()
    for number, values in enumerate(random_curves):
        figure.add_scatter(
            x=x,
            y=values.tolist(),
            mode="lines",
            line={"color": MUTED, "width": 1, "dash": "dot"},
            name="random orders",
            legendgroup="random",
            showlegend=number == 0,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=x,
        y=table["faithfulness"].tolist(),
        error_y=whiskers(
            table["faithfulness"], table["ci_low"], table["ci_high"], color=MUTED, thickness=1.3
        ),
        mode="lines+markers",
        line={"color": CONSTRAINED, "width": 2},
        name="this ranking",
        customdata=table["n_nodes"].tolist(),
        hovertemplate="%{customdata} nodes: %{y:.3f}<extra></extra>",
    )
    figure.add_hline(y=1, line={"color": MUTED, "width": 1})
    words = f"CPR {cpr:.3f}, CMD {cmd:.3f}"
    figure.update_layout(
        template=THEME,
        height=400,
        title={"text": label(title or words)},
        legend={"y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(title_text="share of nodes kept", type="log")
    return figure.update_yaxes(
        title_text="faithfulness (share of clean − corrupted)", zeroline=True, zerolinecolor=MUTED
    )


def screening_figure(
    estimate: pd.DataFrame,
    verified: pd.DataFrame,
    *,
    unit_axis: str | None,
    methods: tuple[str, str],
    metric: str,
) -> go.Figure:
    """The exact effect of every verified unit against its estimate.

    Args:
        estimate, verified: as ``PatchEffects.to_dataframe`` gives them.
        unit_axis: the axis beside ``layer``, such as ``head``; None where a unit is a layer.
        methods: how the effects were estimated, and how verified.
        metric: the unit of the effects.
    """
    found = [one.dropna(subset=["effect"]) for one in (estimate, verified)]
    x, y = (one.assign(head=0 if unit_axis is None else one[unit_axis]) for one in found)
    return method_agreement(x, y, x_name=methods[0], y_name=methods[1], unit=metric)
