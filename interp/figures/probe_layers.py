"""The figure of a probe map: a pure function from its table to plotly, in the shared look."""

import pandas as pd
import plotly.graph_objects as go

from interp.figures.theme import CONSTRAINED, MUTED, THEME, label

_BAND = "rgba(31,95,153,0.18)"
_POSITIONS = {"object": "the object's last token", "last": "the prompt's last token"}


def auc_by_layer(scores: pd.DataFrame, *, hook: str, position: str) -> go.Figure:
    """AUC against layer, its interval as a band, the shuffled-label control dashed.

    `scores` as `ProbeMap.to_dataframe` gives it. The thin line at 0.5 is chance.
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
    where = _POSITIONS.get(position, position)
    figure.update_layout(
        template=THEME, height=380, hovermode="closest", legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(
        title_text=f"layer ({label(hook)} at {label(where)})",
        showgrid=False,
        tick0=0,
        dtick=1 if max(layers) < 12 else 5,
    )
    figure.update_yaxes(
        title_text="AUC, held-out subjects and templates", range=[0, 1.04], dtick=0.25
    )
    return figure
