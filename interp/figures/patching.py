"""Figures of a patching result, and of a faithfulness curve.

Which figure fits a result depends on its axes:

* layer × head: the head heat map, with what is not significant faded;
* layer × position, span × head, or any other two: a heat map on a scale centred at zero;
* one axis: a line with its 95 % interval;
* layer × head × span: a small heat map for each of the first `MAX_PANELS` spans, on one scale;
* layer × head × position: at each layer and position the head with the largest absolute effect.

A positive effect means that the patch moves the metric up from the corrupted run.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from interp.errors import UserError
from interp.figures.heatmap import head_heatmap
from interp.figures.methods import method_agreement
from interp.figures.theme import (
    CONSTRAINED,
    DIVERGING,
    LEGEND_ABOVE,
    MUTED,
    ZERO_LINE,
    cells,
    colour_bar,
    interval_bars,
    label,
    themed,
)
from interp.lazy import go, pd, subplots

MAX_PANELS = 8
_TITLES = {"kv_head": "key/value head", "head": "head", "layer": "layer"}
_HEADS = ("head", "kv_head")
Names = Mapping[str, Sequence[int | str]]
"""The name of each unit along each axis."""


def result_figure(
    effects: Float[np.ndarray, "..."],
    table: "pd.DataFrame",
    *,
    names: Names,
    component: str,
    metric: str,
    title: str,
    fdr: float = 0.05,
) -> "go.Figure":
    """The figure for the result's axes; see the top of the module.

    Args:
        effects: mean effect of each unit; NaN where it was not measured.
        table: as ``PatchEffects.to_dataframe`` returns it, with each unit's interval and q-value.
        names: each axis of ``effects``, in order, with the names of the units along it.
        component: what was patched.
        metric: the unit of the effects.
        fdr: the q-value up to which an effect counts as significant.

    Raises:
        UserError: axes for which there is no figure.
    """
    axes = tuple(names)
    if len(axes) == 1:
        figure = _line(table, axes[0], names[axes[0]], metric=metric)
    elif len(axes) == 2:
        tested = not table["q_value"].isna().all()
        if axes[0] == "layer" and axes[1] in _HEADS and tested:
            heads = _numbered(table, names).rename(columns={axes[1]: "head"})
            heads = heads.assign(site=component, selected=False)
            figure = head_heatmap(heads, fdr=fdr, title=title, unit=metric)
            figure.update_xaxes(title_text=_TITLES[axes[1]])
            return _named(figure, y=names[axes[0]], x=names[axes[1]])
        figure = _panels([("", effects)], names, y=axes[0], x=axes[1], metric=metric)
    elif len(axes) == 3 and axes[1] in _HEADS and axes[2] == "span":
        spans = list(names["span"])[:MAX_PANELS]
        if len(names["span"]) > len(spans):
            title = f"{title}: the first {len(spans)} of {len(names['span'])} spans"
        grids = [(str(span), effects[..., i]) for i, span in enumerate(spans)]
        figure = _panels(grids, names, y=axes[0], x=axes[1], metric=metric)
    elif len(axes) == 3 and axes[1] in _HEADS:
        grids = [("", _strongest(effects))]
        figure = _panels(grids, names, y=axes[0], x=axes[2], metric=metric)
    else:
        raise UserError(f"there is no figure for the axes {', '.join(axes)}: use to_dataframe()")
    return figure.update_layout(title={"text": label(title)})


def _numbered(table: "pd.DataFrame", names: Names) -> "pd.DataFrame":
    """The table with the number of each unit along its axis in place of its name."""
    number = {axis: {name: index for index, name in enumerate(of)} for axis, of in names.items()}
    return table.assign(**{axis: table[axis].map(number[axis]) for axis in names})


def _named(figure: "go.Figure", *, y: Sequence[int | str], x: Sequence[int | str]) -> "go.Figure":
    """The head heat map with names of layers or heads, where there are any, for their numbers."""
    for name, units, update in (("y", y, figure.update_yaxes), ("x", x, figure.update_xaxes)):
        if isinstance(units, range):
            continue
        shown = [label(unit) for unit in units]
        # A category stands at its number, so that the frames and the range stay as they are.
        update(type="category", categoryorder="array", categoryarray=shown, dtick=1)
        figure.for_each_trace(
            lambda trace, name=name, shown=shown: trace.update({name: shown[: len(trace[name])]}),
            selector={"type": "heatmap"},
        )
    return figure


def _strongest(grid: np.ndarray) -> np.ndarray:
    """The effect of the head with the largest absolute effect at each layer and position."""
    filled = np.where(np.isnan(grid), 0.0, grid)
    at = np.abs(filled).argmax(axis=1)[:, None]
    chosen = np.take_along_axis(filled, at, axis=1)[:, 0]
    return np.where(np.isnan(grid).all(axis=1), np.nan, chosen)


def _panels(
    grids: list[tuple[str, np.ndarray]], names: Names, *, y: str, x: str, metric: str
) -> "go.Figure":
    """Heat maps side by side, row = ``y`` (0 on top), on one scale centred at zero."""
    figure = subplots.make_subplots(
        rows=1,
        cols=len(grids),
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=[label(name) for name, _ in grids] if len(grids) > 1 else None,
    )
    known = [grid[~np.isnan(grid)] for _, grid in grids]
    limit = float(np.abs(np.concatenate(known)).max(initial=0.0)) or 1.0
    labels = {axis: [label(name) for name in names[axis]] for axis in (x, y)}
    for column, (_, grid) in enumerate(grids, start=1):
        figure.add_heatmap(
            **{"row": 1, "col": column, "xgap": 1, "ygap": 1, "hoverongaps": False},
            x=labels[x],
            y=labels[y],
            z=cells(grid),
            coloraxis="coloraxis",
            hovertemplate=f"<b>{y} %{{y}}, {x} %{{x}}</b><br>effect %{{z:.4g}}<extra></extra>",
        )
    rows, columns = grids[0][1].shape
    cell = min(26, max(13, 620 // rows))
    themed(
        figure,
        width=max(420, min(1400, len(grids) * columns * 34 + 190)),
        height=rows * cell + 160,
        margin={"l": 56, "r": 14, "t": 76 if len(grids) > 1 else 52, "b": 56},
        coloraxis={
            "colorscale": [list(stop) for stop in DIVERGING],
            **{"cmin": -limit, "cmid": 0.0, "cmax": limit},
            "colorbar": colour_bar(f"effect ({label(metric)})", size=12, outlinewidth=0),
        },
    )
    figure.update_xaxes(title_text=_TITLES.get(x, x), type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure.update_yaxes(title_text=_TITLES.get(y, y), col=1)


def _line(
    table: "pd.DataFrame", axis: str, names: Sequence[int | str], *, metric: str
) -> "go.Figure":
    """Mean effect along one axis, with whiskers where there are intervals."""
    order = {name: index for index, name in enumerate(names)}
    rows = table.sort_values(axis, key=lambda column: column.map(order.__getitem__))
    intervals = interval_bars(rows, "effect", color=MUTED, thickness=1.3)
    figure = go.Figure(
        go.Scatter(
            x=[label(name) for name in rows[axis]],
            y=rows["effect"].tolist(),
            error_y=None if rows["ci_low"].isna().all() else intervals,
            mode="lines+markers",
            line={"color": CONSTRAINED, "width": 2},
            hovertemplate=f"{axis} %{{x}}<br>effect %{{y:.4g}}<extra></extra>",
        )
    )
    themed(figure, height=380)
    figure.update_xaxes(title_text=_TITLES.get(axis, axis), type="category", showgrid=False)
    return figure.update_yaxes(title_text=f"effect ({label(metric)})", **ZERO_LINE)


def faithfulness_figure(
    table: "pd.DataFrame",
    random_curves: Float[np.ndarray, "order proportion"],
    *,
    cpr: float,
    cmd: float,
    kind: str = "nodes",
    title: str | None = None,
) -> "go.Figure":
    """Faithfulness against the share of nodes or edges kept, and that of random orders.

    Args:
        table: as ``Faithfulness.to_dataframe`` returns it.
        random_curves: faithfulness of circuits from random orders of the nodes.
        cpr, cmd: the areas under the curve, and between it and one.
        kind: what is kept, "nodes" or "edges"; the table has the column ``n_nodes`` or ``n_edges``.
        title: by default, ``cpr`` and ``cmd``.
    """
    x = table["proportion"].tolist()
    figure = go.Figure()
    for number, values in enumerate(random_curves):
        figure.add_scatter(
            **{"x": x, "y": values.tolist(), "mode": "lines", "hoverinfo": "skip"},
            line={"color": MUTED, "width": 1, "dash": "dot"},
            **{"name": "random orders", "legendgroup": "random", "showlegend": number == 0},
        )
    figure.add_scatter(
        x=x,
        y=table["faithfulness"].tolist(),
        error_y=interval_bars(table, "faithfulness", color=MUTED, thickness=1.3),
        mode="lines+markers",
        line={"color": CONSTRAINED, "width": 2},
        name="this ranking",
        customdata=table[f"n_{kind}"].tolist(),
        hovertemplate=f"%{{customdata}} {kind}: %{{y:.3f}}<extra></extra>",
    )
    figure.add_hline(y=1, line={"color": MUTED, "width": 1})
    shown = {"text": label(title or f"CPR {cpr:.3f}, CMD {cmd:.3f}")}
    themed(figure, height=400, title=shown, legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text=f"share of {kind} kept", type="log")
    return figure.update_yaxes(title_text="faithfulness (share of clean − corrupted)", **ZERO_LINE)


def screening_figure(
    estimate: "pd.DataFrame",
    verified: "pd.DataFrame",
    *,
    unit_axis: str | None,
    methods: tuple[str, str],
    metric: str,
    spearman: float,
    sizes: bool = False,
) -> "go.Figure":
    """The exact effect of every verified unit against its estimate.

    Args:
        estimate, verified: as ``PatchEffects.to_dataframe`` returns them.
        unit_axis: the axis beside ``layer``, such as ``head``; None where a unit is a layer.
        methods: how the effects were estimated, and how verified.
        metric: the unit of the effects.
        spearman: the rank correlation of the two.
        sizes: the estimate is of absolute effects, with which absolute ones are compared.
    """
    known = [effects.dropna(subset=["effect"]) for effects in (estimate, verified)]
    x, y = (table.assign(head=0 if unit_axis is None else table[unit_axis]) for table in known)
    return method_agreement(
        x,
        y.assign(effect=y["effect"].abs()) if sizes else y,
        x_name=methods[0],
        y_name=f"{methods[1]}, absolute" if sizes else methods[1],
        unit=metric,
        spearman=spearman,
        axis=None if unit_axis is None else _TITLES.get(unit_axis, unit_axis),
    )
