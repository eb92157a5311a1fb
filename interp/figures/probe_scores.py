"""Figures and tables of probes and detectors: scores, controls, detections, the causal check."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interp.figures.dots import dot_figure
from interp.figures.measures import MISSING
from interp.figures.theme import (
    BASELINE,
    CATEGORIES,
    CONSTRAINED,
    INK,
    LEGEND_ABOVE,
    MUTED,
    STRIPES,
    centred,
    colour_bar,
    label,
    themed,
    whiskers,
)
from interp.files.shape import Maybe
from interp.lazy import go, pd

_BELOW_ONE = 0.99999
_BAND = "rgba(31,95,153,0.18)"
_POSITIONS = {"object": "the object's last token", "last": "the prompt's last token"}
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
"""What of detection.json is shown; see `interp.files.shape.check_shape`."""


def grid_figure(table: "pd.DataFrame", *, axis: str, hook: str) -> "go.Figure":
    """Held-out AUC, layer × position or layer × head; white is chance.

    `table` as `ProbeGrid.to_dataframe` returns it. The hover text of a cell has its interval.
    """
    wide = table.pivot(index="layer", columns=axis, values="auc")
    wide = wide[list(dict.fromkeys(table[axis]))]
    scores = table.set_index(["layer", axis])
    hover = [
        [
            _hover(scores.loc[(layer, name)], f"{axis} {label(name)}, layer {layer}")
            for name in wide.columns
        ]
        for layer in wide.index
    ]
    figure = go.Figure(
        go.Heatmap(
            x=[label(_NAMES.get(str(name), str(name))) for name in wide.columns],
            y=[int(layer) for layer in wide.index],
            z=wide.to_numpy(dtype=float).tolist(),
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            **centred(0.5, middle=0.5),
            colorbar=colour_bar("AUC"),
        )
    )
    size = min(22, max(13, 560 // len(wide.index)))
    themed(figure, height=len(wide.index) * size + 150)
    title = "head" if axis == "head" else "position of the probe's token"
    figure.update_xaxes(title_text=title, type="category", showgrid=False)
    return figure.update_yaxes(
        title_text=f"layer ({label(hook)})", autorange="reversed", showgrid=False
    )


def _hover(score: Any, name: str) -> str:
    """The hover text of a cell."""
    return (
        f"{name}<br>"
        f"AUC {score['auc']:.3f} [{score['ci_low']:.3f}, {score['ci_high']:.3f}]<br>"
        f"accuracy {score['accuracy']:.3f}"
    )


def auc_by_layer(scores: "pd.DataFrame", *, hook: str, position: str) -> "go.Figure":
    """AUC against layer, its interval as a band, the shuffled-label control dashed.

    `scores` as `ProbeMap.to_dataframe` returns it. The thin line at 0.5 is chance.
    """
    rows = scores.sort_values("layer")
    layers = rows["layer"].tolist()
    figure = go.Figure()
    figure.add_scatter(
        x=layers + layers[::-1],
        y=rows["ci_high"].tolist() + rows["ci_low"].tolist()[::-1],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=_BAND,
        name=f"95 % interval, {int(rows['n_subjects'].iloc[0])} subjects",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=layers,
        y=rows["shuffled_auc"].tolist(),
        mode="lines+markers",
        name="labels shuffled",
        line={"color": MUTED, "width": 1.5, "dash": "dash"},
        marker={"symbol": "square", "size": 4},
        hovertemplate="layer %{x}<br>labels shuffled: %{y:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=layers,
        y=rows["auc"].tolist(),
        mode="lines+markers",
        name="probe",
        line={"color": CONSTRAINED, "width": 2.5},
        marker={"size": 6},
        customdata=rows[["ci_low", "ci_high", "search_auc"]].to_numpy(dtype=float).tolist(),
        hovertemplate=(
            "<b>layer %{x}</b><br>"
            "AUC %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>"
            "in the search part %{customdata[2]:.3f}<extra></extra>"
        ),
    )
    figure.add_hline(y=0.5, line={"color": MUTED, "width": 1})
    themed(figure, height=380, hovermode="closest", legend=LEGEND_ABOVE)
    figure.update_xaxes(
        title_text=f"layer ({label(hook)} at {label(_POSITIONS.get(position, position))})",
        showgrid=False,
        tick0=0,
        dtick=1 if max(layers) < 12 else 5,
    )
    figure.update_yaxes(
        title_text="AUC, held-out subjects and templates", range=[0, 1.04], dtick=0.25
    )
    return figure


def controls_figure(controls: "pd.DataFrame") -> "go.Figure":
    """AUC of the probe and its controls with 95 % intervals.

    `controls` as `ControlReport.to_dataframe` returns it.
    """
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


def reliability_figure(curve: "pd.DataFrame") -> "go.Figure":
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
    themed(figure, height=380, legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="predicted probability of a false premise", range=[0, 1.02])
    return figure.update_yaxes(title_text="share that has one", range=[0, 1.02])


def detection_table(detection: Mapping[str, Any]) -> "pd.DataFrame":
    """The content of detection.json as a table: measure, and value with its interval."""
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


def detections_figure(false: Sequence[float], twin: Sequence[float]) -> "go.Figure":
    """Histograms of the predicted probability, for false premises and for their twins."""
    figure = go.Figure()
    for values, name, colour, pattern in (
        (twin, "true-premise twins", BASELINE, ""),
        (false, "false premises", CATEGORIES[1], "/"),
    ):
        figure.add_histogram(
            # plotly's bins leave out their upper end: a probability of 1 belongs to the last one.
            x=[min(value, _BELOW_ONE) for value in values],
            xbins={"start": 0.0, "end": 1.0, "size": 0.05},
            name=name,
            opacity=0.75,
            marker={
                "color": colour,
                "line": {"color": MUTED, "width": 1},
                "pattern": {"shape": pattern, **STRIPES},
            },
            hovertemplate=f"%{{x}}: %{{y}} {name}<extra></extra>",
        )
    themed(figure, height=340, barmode="overlay", legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="probability of a false premise", range=[-0.02, 1.02])
    return figure.update_yaxes(title_text="questions", rangemode="tozero")


def rates_figure(table: "pd.DataFrame") -> "go.Figure":
    """Change of right answers per 1,000 questions, at each rate of false premises.

    `table` as `probes.detector.rates.RateTable` holds it.
    """
    figure = go.Figure(
        go.Bar(
            x=[f"{rate:.0%}" for rate in table["rate"]],
            y=table["change"].tolist(),
            marker={"color": CONSTRAINED},
            customdata=table[["precision", "caught", "alarms"]].to_numpy(dtype=float).tolist(),
            hovertemplate="%{x}: %{y:.1f} right answers<br>precision %{customdata[0]:.2f}, "
            "%{customdata[1]:.1f} caught, %{customdata[2]:.1f} false alarms<extra></extra>",
        )
    )
    themed(figure, height=340)
    figure.update_xaxes(title_text="questions with a false premise", type="category")
    return figure.update_yaxes(title_text="change of right answers per 1,000 questions")


def removal_null(
    effect: tuple[float, float, float], random: Sequence[float] | np.ndarray, *, p_value: float
) -> "go.Figure":
    """The effect of removing the probe's direction, over a histogram for random directions.

    ``effect`` is (mean, low, high); ``random`` one mean for each direction; all in logits.
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
    themed(figure, height=340, bargap=0.05, legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="change of the logit difference, true − false object (logits)")
    figure.update_yaxes(title_text="directions", rangemode="tozero")
    return figure
