"""Figures of a patching result, and of a faithfulness curve.

Which figure fits a result depends on its axes:

* layer × head: the head heat map, with what is not significant faded;
* layer × position, or layer × span: a heat map on a scale centred at zero;
* one axis: a line with its 95 % interval;
* layer × head × span: a small heat map for each span, on one scale;
* layer × head × position: at each layer and position the head with the largest absolute effect.

A positive effect means that the patch moves the metric up from the corrupted run.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import UserError
from interp.figures.evaluation import method_agreement
from interp.figures.heatmap import head_heatmap
from interp.figures.look import CONSTRAINED, DIVERGING, LOOK, MUTED, label, whiskers

if TYPE_CHECKING:
    from interp.patching.faithfulness import Faithfulness
    from interp.patching.result import PatchingResult
    from interp.patching.screen import Screening

MAX_PANELS = 8
_TITLES = {"kv_head": "key/value head", "head": "head", "layer": "layer"}
_HEADS = ("head", "kv_head")


def result_figure(
    result: "PatchingResult", *, fdr: float = 0.05, title: str | None = None
) -> go.Figure:
    """The figure that fits the result's axes (see the module's text).

    Args:
        fdr: the q-value up to which an effect counts as significant.

    Raises:
        UserError: axes for which there is no figure.
    """
    axes = result.axes[1:]
    name = title or f"{result.component}, {result.method}"
    frame = result.to_dataframe()
    if len(axes) == 1:
        figure = _line(frame, axes[0], result)
    elif len(axes) == 2:
        if axes[1] in _HEADS and not frame["q_value"].isna().all():
            return _heads(frame, axes[1], result, fdr, name)
        figure = _panels(result, [("", result.group_mean)], axes[0], axes[1])
    elif len(axes) == 3 and axes[1] in _HEADS and axes[2] == "span":
        grids = [
            (str(result.labels.get("span", range(99))[i]), result.group_mean[..., i])
            for i in range(min(result.shape[2], MAX_PANELS))
        ]
        figure = _panels(result, grids, axes[0], axes[1])
    elif len(axes) == 3 and axes[1] in _HEADS:
        figure = _panels(result, [("", _strongest(result.group_mean))], axes[0], axes[2])
    else:
        raise UserError(f"there is no figure for the axes {', '.join(axes)}: use to_dataframe()")
    return figure.update_layout(title={"text": label(name)})


def _heads(
    frame: pd.DataFrame, axis: str, result: "PatchingResult", fdr: float, title: str
) -> go.Figure:
    heads = frame.rename(columns={axis: "head"}).assign(site=result.component, selected=False)
    figure = head_heatmap(heads, fdr=fdr, title=title, unit=result.metric)
    return figure.update_xaxes(title_text=_TITLES[axis])


def _strongest(grid: np.ndarray) -> np.ndarray:
    """Of [layer head position] the head with the largest absolute effect, [layer position]."""
    filled = np.where(np.isnan(grid), 0.0, grid)
    at = np.abs(filled).argmax(axis=1)[:, None]
    chosen = np.take_along_axis(filled, at, axis=1)[:, 0]
    return np.where(np.isnan(grid).all(axis=1), np.nan, chosen)


def _panels(
    result: "PatchingResult", grids: list[tuple[str, np.ndarray]], y: str, x: str
) -> go.Figure:
    """Heat maps side by side, row = ``y`` (0 on top), on one scale centred at zero."""
    figure = make_subplots(
        rows=1, cols=len(grids), shared_yaxes=True, horizontal_spacing=0.02,
        subplot_titles=[label(name) for name, _ in grids] if len(grids) > 1 else None,
    )  # fmt: skip
    known = [grid[~np.isnan(grid)] for _, grid in grids]
    limit = float(np.abs(np.concatenate(known)).max(initial=0.0)) or 1.0
    names = {axis: [label(one) for one in _along(result, axis)] for axis in (x, y)}
    for column, (_, grid) in enumerate(grids, start=1):
        figure.add_heatmap(
            row=1,
            col=column,
            x=names[x],
            y=names[y],
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
        template=LOOK,
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
                    "text": f"effect ({label(result.metric)})",
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


def _along(result: "PatchingResult", axis: str) -> list[Any]:
    size = result.values.shape[result.axes.index(axis)]
    return list(result.labels.get(axis) or range(size))


def _line(frame: pd.DataFrame, axis: str, result: "PatchingResult") -> go.Figure:
    """Mean effect along one axis, with whiskers where there are intervals."""
    place = {name: index for index, name in enumerate(_along(result, axis))}
    rows = frame.sort_values(axis, key=lambda column: column.map(place.__getitem__))
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
    figure.update_layout(template=LOOK, height=380)
    figure.update_xaxes(title_text=_TITLES.get(axis, axis), type="category", showgrid=False)
    return figure.update_yaxes(
        title_text=f"effect ({label(result.metric)})", zeroline=True, zerolinecolor=MUTED
    )


def faithfulness_figure(curve: "Faithfulness", *, title: str | None = None) -> go.Figure:
    """Faithfulness over the share of nodes kept, with its interval, over random orders."""
    table = curve.to_dataframe()
    x = table["proportion"].tolist()
    figure = go.Figure()
    for number, values in enumerate(curve.random_curves):
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
    words = f"CPR {curve.cpr[0]:.3f}, CMD {curve.cmd[0]:.3f}"
    figure.update_layout(
        template=LOOK,
        height=400,
        title={"text": label(title or words)},
        legend={"y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(title_text="share of nodes kept", type="log")
    return figure.update_yaxes(
        title_text="faithfulness (share of clean − corrupted)", zeroline=True, zerolinecolor=MUTED
    )


def screening_figure(screening: "Screening") -> go.Figure:
    """The exact effect of every verified unit against its estimate."""
    frames = []
    for result in (screening.estimate, screening.verified):
        frame = result.to_dataframe().dropna(subset=["effect"])
        units = [axis for axis in result.axes[1:] if axis != "layer"]
        frames.append(frame.assign(head=frame[units[0]] if units else 0))
    return method_agreement(
        *frames, x_name=screening.estimate.method, y_name=screening.verified.method,
        unit=screening.estimate.metric,
    )  # fmt: skip
