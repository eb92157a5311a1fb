"""Figures about the gate: treatments side by side, uncertainty, information flow, causal check.

Pure functions from tables to plotly figures in the one look of ``look.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.look import (
    BASELINE,
    CATEGORIES,
    CONSTRAINED,
    INK,
    LOOK,
    MUTED,
    STRIPES,
    SYMBOLS,
    label,
    whiskers,
)
from interp.figures.tables import where

_PARTS = {"subject": "subject", "object": "false object", "rest": "other tokens"}
_SCORES = {
    "surprisal": "surprisal, greedy answer (nats per token)",
    "sampled_surprisal": "surprisal, sampled answers (nats per token)",
    "cluster_entropy": "entropy of answer clusters (nats)",
}


def gain_against_cost(table: pd.DataFrame) -> go.Figure:
    """Each treatment as a point: gain on false premises against cost on the twins, with intervals.

    ``table`` as ``interp.evaluation.baselines.table`` gives it. Up is better, left is better; the
    cost is the fall of P(true object), which moves long before the preference does.
    """
    figure = go.Figure()
    for index, row in enumerate(table.to_dict(orient="records")):
        figure.add_scatter(
            x=[row["cost_p_true"]],
            y=[row["gain"]],
            mode="markers",
            name=label(row["treatment"]),
            marker={
                "symbol": SYMBOLS[index % len(SYMBOLS)],
                "size": 11,
                "color": CATEGORIES[index % len(CATEGORIES)],
            },
            error_x=_reach(row, "cost_p_true"),
            error_y=_reach(row, "gain"),
            customdata=[[row["cost"], row["unchanged"], row["seconds"]]],
            hovertemplate=(
                f"<b>{label(row['treatment'])}</b><br>gain %{{y:.3f}}<br>"
                "fall of P(true object) on twins %{x:.3f}<br>"
                "fall of preference on twins %{customdata[0]:.3f}<br>"
                "twins' answers unchanged %{customdata[1]:.2f}<br>"
                "%{customdata[2]:.3g} s a question<extra></extra>"
            ),
        )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    figure.add_vline(x=0, line={"color": MUTED, "width": 1})
    figure.update_layout(
        template=LOOK, height=460, hovermode="closest", legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text="cost: fall of P(true object) on true-premise twins")
    figure.update_yaxes(title_text="gain: rise of preference accuracy on false premises")
    return figure


def _reach(row: Mapping[Any, Any], name: str) -> dict[str, object]:
    ends = [row[name]], [row[f"{name}_low"]], [row[f"{name}_high"]]
    return whiskers(*ends, thickness=1, width=3)


def flow_by_layer(flow: pd.DataFrame) -> go.Figure:
    """Saliency for the last token against layer, a line for each part, with its interval.

    ``flow`` as ``InformationFlow.to_dataframe`` gives it.
    """
    figure = go.Figure()
    for index, (part, name) in enumerate(_PARTS.items()):
        rows = where(flow, flow["part"] == part).sort_values("layer")
        figure.add_scatter(
            x=rows["layer"].tolist(),
            y=rows["saliency"].tolist(),
            mode="lines+markers",
            name=name,
            line={"color": CATEGORIES[index], "width": 2},
            marker={"symbol": SYMBOLS[index], "size": 6},
            error_y=whiskers(
                rows["saliency"], rows["ci_low"], rows["ci_high"], thickness=1, width=0
            ),
            hovertemplate=f"layer %{{x}}<br>{name}: %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(
        template=LOOK, height=380, hovermode="closest", legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text="layer", showgrid=False)
    figure.update_yaxes(title_text="mean saliency per token (nats)", rangemode="tozero")
    return figure


def uncertainty_by_outcome(scores: pd.DataFrame, auc: pd.DataFrame) -> go.Figure:
    """A box for each score: hallucinated answers beside the others, the AUC above.

    ``scores`` as ``Uncertainty.to_dataframe`` gives it, with a column ``hallucinated``; ``auc`` as
    ``Uncertainty.auc``.
    """
    by_score = auc.set_index("score")
    titles = [
        f"AUC {by_score.at[name, 'auc']:.2f} "
        f"[{by_score.at[name, 'ci_low']:.2f}, {by_score.at[name, 'ci_high']:.2f}]"
        for name in _SCORES
    ]
    figure = make_subplots(rows=1, cols=len(_SCORES), subplot_titles=titles)
    for column, (name, text) in enumerate(_SCORES.items(), start=1):
        for wrong, colour, shown in (
            (False, MUTED, "not hallucinated"),
            (True, CATEGORIES[1], "hallucinated"),
        ):
            symbol = "diamond" if wrong else "circle"
            figure.add_box(
                y=scores.loc[scores["hallucinated"] == wrong, name].tolist(),
                name=shown,
                legendgroup=shown,
                showlegend=column == 1,
                marker={"color": colour, "size": 5, "symbol": symbol},
                boxpoints="all",
                jitter=0.4,
                row=1,
                col=column,
            )
        figure.update_yaxes(title_text=text, row=1, col=column)
        figure.update_xaxes(showticklabels=False, row=1, col=column)
    figure.update_layout(template=LOOK, height=400, legend={"y": -0.05, "yanchor": "top"})
    return figure


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
        template=LOOK, height=340, barmode="overlay", legend={"y": 1.02, "yanchor": "bottom"}
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
        template=LOOK, height=340, bargap=0.05, legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text="change of the logit difference, true − false object (logits)")
    figure.update_yaxes(title_text="directions", rangemode="tozero")
    return figure
