"""Figures of a comparison, in the one look of `interp.figures.theme`.

Pure functions from comparison.json's content, or the table of logged steps, to plotly figures. A
method has the same colour and marker everywhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.figures.theme import CATEGORIES, LEGEND_ABOVE, MUTED, SYMBOLS, THEME, label, whiskers
from interp.moelora.training.adapters import METHOD_NAMES

_DASHES = ("dot", "dash", "solid", "dashdot")


def accuracy_figure(content: Mapping[str, Any]) -> go.Figure:
    """Accuracy by task: each method's mean with its interval over questions, each seed a dot."""
    methods = list(content["methods"])
    tasks = list(content["methods"][methods[0]]["accuracy"])
    figure = go.Figure()
    for number, method in enumerate(methods):
        rows = content["methods"][method]["accuracy"]
        places = [index + (number - (len(methods) - 1) / 2) * 0.18 for index, _ in enumerate(tasks)]
        means = [rows[task]["mean"] for task in tasks]
        ends = [rows[task]["questions"] for task in tasks]
        figure.add_scatter(
            x=places,
            y=means,
            mode="markers",
            name=label(METHOD_NAMES[method]),
            marker={"color": _colour(number), "symbol": SYMBOLS[number], "size": 11},
            error_y=whiskers(means, *zip(*ends, strict=True), thickness=1.5, width=4),
            customdata=[label(task) for task in tasks],
            hovertemplate="%{customdata}: %{y:.3f}<extra>"
            + label(METHOD_NAMES[method])
            + "</extra>",
        )
        seeds = [
            (place, value)
            for place, task in zip(places, tasks, strict=True)
            for value in rows[task]["by_seed"]
        ]
        figure.add_scatter(
            x=[place + 0.05 for place, _ in seeds],
            y=[value for _, value in seeds],
            mode="markers",
            showlegend=False,
            marker={"color": _colour(number), "size": 4, "opacity": 0.6},
            hovertemplate="one seed: %{y:.3f}<extra></extra>",
        )
    _add_base(figure, content, tasks)
    figure.update_layout(template=THEME, height=440, legend=LEGEND_ABOVE)
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
    """A column of the log over the steps: a method's mean over seeds bold, each seed thin.

    `even` draws a level to compare with. Methods without the column are left out.
    """
    figure = go.Figure()
    for number, method in enumerate(dict.fromkeys(losses["method"])):
        rows = losses.loc[(losses["method"] == method) & losses[column].notna()]
        if rows.empty:
            continue
        for _, of_seed in rows.groupby("seed"):
            figure.add_scatter(
                x=of_seed["step"].tolist(),
                y=of_seed[column].tolist(),
                mode="lines",
                line={"color": _colour(number), "width": 1},
                opacity=0.35,
                showlegend=False,
                hoverinfo="skip",
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
    figure.update_layout(template=THEME, height=360, legend=LEGEND_ABOVE)
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
