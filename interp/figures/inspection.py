"""Figures of information flow by layer and of uncertainty by outcome."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.figures.tables import where
from interp.figures.theme import CATEGORIES, LEGEND_ABOVE, MUTED, SYMBOLS, interval_bars, themed

_PARTS = {"subject": "subject", "object": "false object", "rest": "other tokens"}
_SCORES = {
    "surprisal": "surprisal, greedy answer (nats per token)",
    "sampled_surprisal": "surprisal, sampled answers (nats per token)",
    "cluster_entropy": "entropy of answer clusters (nats)",
}


def flow_by_layer(flow: pd.DataFrame) -> go.Figure:
    """Saliency for the last token against layer, a line for each part, with its interval.

    ``flow`` as ``InformationFlow.to_dataframe`` returns it.
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
            error_y=interval_bars(rows, "saliency", thickness=1, width=0),
            hovertemplate=f"layer %{{x}}<br>{name}: %{{y:.4g}}<extra></extra>",
        )
    themed(figure, height=380, hovermode="closest", legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="layer", showgrid=False)
    figure.update_yaxes(title_text="mean saliency per token (nats)", rangemode="tozero")
    return figure


def uncertainty_by_outcome(scores: pd.DataFrame, auc: pd.DataFrame) -> go.Figure:
    """A panel for each score: box plots of hallucinated and other answers, and the AUC.

    ``scores`` as ``Uncertainty.to_dataframe`` returns it, with a column ``hallucinated``; ``auc``
    as ``Uncertainty.auc``.
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
    themed(figure, height=400, legend={"y": -0.05, "yanchor": "top"})
    return figure
