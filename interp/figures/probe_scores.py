"""Figures and tables of probes and detectors: scores, controls, detections, the causal check."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.figures.dots import dot_figure
from interp.figures.measures import MISSING
from interp.figures.theme import (
    BASELINE,
    CATEGORIES,
    CONSTRAINED,
    INK,
    MUTED,
    STRIPES,
    THEME,
    centred,
    label,
    whiskers,
)
from interp.files import Maybe

_NAMES = {
    "object": "object, last token",
    "object_mean": "object, mean",
    "subject": "subject, last token",
    "subject_mean": "subject, mean",
    "last": "prompt's last token",
}

_MEASURE = Maybe([float, float, float])
DETECTION_SHAPE = {
    **dict.fromkeys(("auc", "fired_on_false", "fired_on_twins", "span_covers_object"), _MEASURE),
    "calibration_error": float,
    "n": int,
}
"""What of detection.json is shown; see `interp.files.check_shape`."""


def grid_figure(table: pd.DataFrame, *, axis: str, hook: str) -> go.Figure:
    """Held-out AUC, layer × position or layer × head; white is chance.

    `table` as `ProbeGrid.to_dataframe` gives it. The interval is in each cell's text.
    """
    wide = table.pivot(index="layer", columns=axis, values="auc")
    wide = wide[list(dict.fromkeys(table[axis]))]
    cells = table.set_index(["layer", axis])
    hover = [
        [
            f"{axis} {label(place)}, layer {layer}<br>AUC {cells.at[(layer, place), 'auc']:.3f} "
            f"[{cells.at[(layer, place), 'ci_low']:.3f}, "
            f"{cells.at[(layer, place), 'ci_high']:.3f}]<br>"
            f"accuracy {cells.at[(layer, place), 'accuracy']:.3f}"
            for place in wide.columns
        ]
        for layer in wide.index
    ]
    figure = go.Figure(
        go.Heatmap(
            x=[label(_NAMES.get(str(place), str(place))) for place in wide.columns],
            y=[int(layer) for layer in wide.index],
            z=wide.to_numpy(dtype=float).tolist(),
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            **centred(0.5, middle=0.5),
            colorbar={"title": {"text": "AUC", "side": "right"}, "thickness": 10},
        )
    )
    size = min(22, max(13, 560 // len(wide.index)))
    figure.update_layout(template=THEME, height=len(wide.index) * size + 150)
    title = "head" if axis == "head" else "position of the probe's token"
    figure.update_xaxes(title_text=title, type="category", showgrid=False)
    return figure.update_yaxes(
        title_text=f"layer ({label(hook)})", autorange="reversed", showgrid=False
    )


def controls_figure(controls: pd.DataFrame) -> go.Figure:
    """The probe and its controls, AUC with 95 % intervals; `ControlReport.to_dataframe`."""
    return dot_figure(
        controls["name"],
        controls["auc"],
        low=controls["ci_low"],
        high=controls["ci_high"],
        title="AUC, held-out subjects and templates",
        line=0.5,
        span=(0.0, 1.04),
        emphasis=0,
    )


def reliability_figure(curve: pd.DataFrame) -> go.Figure:
    """Observed share of false premises against the mean predicted probability of each bin."""
    figure = go.Figure(
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": MUTED, "width": 1}, name="calibrated"
        )
    )
    figure.add_scatter(
        x=curve["predicted"].tolist(),
        y=curve["observed"].tolist(),
        customdata=curve["n"].tolist(),
        mode="lines+markers",
        line={"color": CONSTRAINED, "width": 2},
        marker={"size": 8},
        name="detector",
        hovertemplate="predicted %{x:.2f}, observed %{y:.2f}, %{customdata} questions"
        "<extra></extra>",
    )
    figure.update_layout(template=THEME, height=380, legend={"y": 1.02, "yanchor": "bottom"})
    figure.update_xaxes(title_text="predicted probability of a false premise", range=[0, 1.02])
    return figure.update_yaxes(title_text="share that has one", range=[0, 1.02])


def detection_table(detection: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of detection.json for people: measure and value with its interval."""
    names = {
        "auc": "AUC, false premises against twins",
        "fired_on_false": "fires on false premises",
        "fired_on_twins": "fires on twins",
        "span_covers_object": "words found hold the false object",
    }
    rows = [
        (text, MISSING if detection.get(key) is None else _interval(detection[key]))
        for key, text in names.items()
    ]
    error = detection["calibration_error"]
    rows.append(("expected calibration error", f"{error:.3f}"))
    rows.append(("questions", f"{detection['n']}, each with its twin"))
    return pd.DataFrame(rows, columns=["measure", "value"])


def _interval(value: Any) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def detections_figure(false: Sequence[float], twin: Sequence[float]) -> go.Figure:
    """Probabilities of a false premise, of false premises and of twins, as two histograms."""
    figure = go.Figure()
    for values, name, colour, pattern in (
        (twin, "true-premise twins", BASELINE, ""),
        (false, "false premises", CATEGORIES[1], "/"),
    ):
        figure.add_histogram(
            x=list(values),
            xbins={"start": 0.0, "end": 1.0001, "size": 0.05},
            name=name,
            opacity=0.75,
            marker={
                "color": colour,
                "line": {"color": MUTED, "width": 1},
                "pattern": {"shape": pattern, **STRIPES},
            },
            hovertemplate=f"%{{x}}: %{{y}} {name}<extra></extra>",
        )
    figure.update_layout(
        template=THEME, height=340, barmode="overlay", legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text="probability of a false premise", range=[-0.02, 1.02])
    return figure.update_yaxes(title_text="questions", rangemode="tozero")


def removal_null(
    effect: tuple[float, float, float], random: Sequence[float] | np.ndarray, *, p_value: float
) -> go.Figure:
    """The change without the probe's direction, over those of steps along random directions.

    ``effect`` is [mean, low, high]; ``random`` one mean per direction; all in logits.
    """
    mean, low, high = effect
    figure = go.Figure()
    figure.add_histogram(
        x=np.asarray(random, dtype=float).tolist(),
        name=f"{len(random)} random directions",
        marker={"color": BASELINE, "line": {"color": MUTED, "width": 1}},
        hovertemplate="%{x}: %{y} directions<extra></extra>",
    )
    figure.add_scatter(
        x=[mean],
        y=[0],
        mode="markers",
        name=f"the probe's direction (p = {p_value:.3f})",
        marker={"symbol": "diamond", "size": 12, "color": CONSTRAINED},
        error_x=whiskers([mean], [low], [high], color=INK),
        hovertemplate="%{x:.3f} logits<extra></extra>",
    )
    figure.update_layout(
        template=THEME, height=340, bargap=0.05, legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text="change of the logit difference, true − false object (logits)")
    figure.update_yaxes(title_text="directions", rangemode="tozero")
    return figure
