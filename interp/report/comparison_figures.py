"""Figures of a comparison of adapters, from comparison.json or the table of logged steps.

A method has the same colour and marker in all figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.figures.theme import CATEGORIES, LEGEND_ABOVE, MUTED, SYMBOLS, label, themed, whiskers
from interp.moelora.training.adapters import METHOD_NAMES

_DASHES = ("dot", "dash", "solid", "dashdot")


def accuracy_figure(content: Mapping[str, Any]) -> go.Figure:
    """Accuracy by task: each method's mean with its interval over questions, and each seed."""
    methods = list(content["methods"])
    tasks = list(content["methods"][methods[0]]["accuracy"])
    figure = go.Figure()
    for number, method in enumerate(methods):
        rows = content["methods"][method]["accuracy"]
        x = [index + (number - (len(methods) - 1) / 2) * 0.18 for index, _ in enumerate(tasks)]
        means, name = [rows[task]["mean"] for task in tasks], label(METHOD_NAMES[method])
        ends = [rows[task]["questions"] for task in tasks]
        figure.add_scatter(
            x=x,
            y=means,
            mode="markers",
            name=name,
            marker={"color": _colour(number), "symbol": SYMBOLS[number], "size": 11},
            error_y=whiskers(means, *zip(*ends, strict=True), thickness=1.5, width=4),
            customdata=[label(task) for task in tasks],
            hovertemplate=f"%{{customdata}}: %{{y:.3f}}<extra>{name}</extra>",
        )
        by_seed = [rows[task]["by_seed"] for task in tasks]
        figure.add_scatter(
            x=[at + 0.05 for at, values in zip(x, by_seed, strict=True) for _ in values],
            y=[value for values in by_seed for value in values],
            mode="markers",
            showlegend=False,
            marker={"color": _colour(number), "size": 4, "opacity": 0.6},
            hovertemplate="one seed: %{y:.3f}<extra></extra>",
        )
    _add_base(figure, content, tasks)
    themed(figure, height=440, legend=LEGEND_ABOVE)
    figure.update_xaxes(
        tickvals=list(range(len(tasks))),
        ticktext=[label(task) for task in tasks],
        range=[-0.6, len(tasks) - 0.4],
        showgrid=False,
    )
    figure.update_yaxes(title_text="accuracy on held-out questions", rangemode="tozero")
    return figure


def curve_figure(
    losses: pd.DataFrame, column: str, title: str, *, even: float | None = None
) -> go.Figure:
    """A column of the log against the step: a bold line for a method's mean, a thin one for a seed.

    ``even`` draws a reference level. Methods without the column are left out.
    """
    figure = go.Figure()
    for number, method in enumerate(dict.fromkeys(losses["method"])):
        rows = losses.loc[(losses["method"] == method) & losses[column].notna()]
        if rows.empty:
            continue
        for _, seed_rows in rows.groupby("seed"):
            figure.add_scatter(
                x=seed_rows["step"].tolist(),
                y=seed_rows[column].tolist(),
                line={"color": _colour(number), "width": 1},
                **{"mode": "lines", "opacity": 0.35, "showlegend": False, "hoverinfo": "skip"},
            )
        mean = rows.groupby("step")[column].mean()
        figure.add_scatter(
            x=mean.index.tolist(),
            y=mean.tolist(),
            mode="lines",
            name=label(METHOD_NAMES[method]),
            line={"color": _colour(number), "width": 2.5, "dash": _DASHES[number % len(_DASHES)]},
            hovertemplate="step %{x}: %{y:.4g}<extra>" + label(METHOD_NAMES[method]) + "</extra>",
        )
    if even is not None:
        figure.add_hline(y=even, line={"color": MUTED, "width": 1, "dash": "dash"})
    themed(figure, height=360, legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text=title)
    return figure


def _add_base(figure: go.Figure, content: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """A short line at the accuracy of the model without an adapter."""
    base = content.get("base", {}).get("accuracy", {})
    for number, task in enumerate(tasks):
        if task in base:
            value = base[task]["value"]
            figure.add_scatter(
                x=[number - 0.35, number + 0.35],
                y=[value, value],
                mode="lines",
                name="no adapter",
                showlegend=number == 0,
                line={"color": MUTED, "width": 1.5, "dash": "dash"},
                hovertemplate="no adapter: %{y:.3f}<extra></extra>",
            )


def _colour(number: int) -> str:
    return CATEGORIES[number % len(CATEGORIES)]
