"""The figure of effects by layer: the sum of each layer's heads, with its 95 % interval."""

import pandas as pd
import plotly.graph_objects as go

from interp.figures.theme import INK, MUTED, NEGATIVE, POSITIVE, STRIPES, THEME, label, whiskers


def layer_effects(layers: pd.DataFrame, *, unit: str = "logits") -> go.Figure:
    """A bar for each layer; `layers` as `interp.heads.effects.effects_by_layer` gives it."""
    effects = layers["effect"].tolist()
    figure = go.Figure(
        go.Bar(
            x=layers["layer"].tolist(),
            y=effects,
            error_y=whiskers(
                effects, layers["ci_low"], layers["ci_high"], color=INK, thickness=1.2, width=3
            ),
            marker={
                "color": [POSITIVE if one >= 0 else NEGATIVE for one in effects],
                "opacity": 0.85,
                "pattern": {"shape": ["" if one >= 0 else "/" for one in effects], **STRIPES},
            },
            customdata=layers[["ci_low", "ci_high", "significant"]].to_numpy(dtype=float).tolist(),
            hovertemplate=(
                "<b>layer %{x}</b><br>%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}] "
                f"{label(unit)}<br>%{{customdata[2]:d}} significant heads<extra></extra>"
            ),
        )
    )
    figure.update_layout(template=THEME, height=380, bargap=0.25, margin={"t": 24})
    figure.update_xaxes(
        title_text="layer", showgrid=False, tick0=0, dtick=1 if len(layers) <= 12 else 5
    )
    return figure.update_yaxes(
        title_text=f"sum of the heads' effects ({label(unit)})",
        zeroline=True,
        zerolinecolor=MUTED,
    )
