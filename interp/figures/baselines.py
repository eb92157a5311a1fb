"""The figure of treatments against false premises, side by side: what each gains and costs."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.figures.theme import CATEGORIES, MUTED, SYMBOLS, THEME, label, whiskers


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
        template=THEME, height=460, hovermode="closest", legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text="cost: fall of P(true object) on true-premise twins")
    figure.update_yaxes(title_text="gain: rise of preference accuracy on false premises")
    return figure


def _reach(row: Mapping[Any, Any], name: str) -> dict[str, object]:
    ends = [row[name]], [row[f"{name}_low"]], [row[f"{name}_high"]]
    return whiskers(*ends, thickness=1, width=3)
