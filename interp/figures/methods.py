"""Two methods side by side: the effect of every head by one, against that by the other."""

from interp.errors import UserError
from interp.figures.measures import MISSING, format_number
from interp.figures.theme import CONSTRAINED, ZERO_LINE, label, themed
from interp.lazy import go, pd


def method_agreement(
    x: "pd.DataFrame",
    y: "pd.DataFrame",
    *,
    x_name: str,
    y_name: str,
    unit: str = "logits",
    spearman: float | None = None,
    axis: str | None = "head",
) -> "go.Figure":
    """The effect of every head by two methods, one against the other, with their rank correlation.

    Args:
        x, y: columns `layer`, `head`, `effect`; of one site each.
        x_name, y_name: the methods.
        unit: of the effects.
        spearman: the rank correlation, where it is known; NaN where there is none.
        axis: what `head` counts; None where a row is a whole layer.

    Raises:
        UserError: tables that share fewer than three heads.
    """
    kind = axis or "layer"
    both = x[["layer", "head", "effect"]].merge(
        y[["layer", "head", "effect"]], on=["layer", "head"]
    )
    if len(both) < 3:
        raise UserError(f"the two tables share fewer than three {kind}s; give those of one model")
    if spearman is None:
        # The rank correlation is the linear correlation of the ranks.
        spearman = float(both["effect_x"].rank().corr(both["effect_y"].rank()))
    place = "layer %{customdata[0]}" + ("" if axis is None else f", {axis} %{{customdata[1]}}")
    figure = go.Figure(
        go.Scatter(
            x=both["effect_x"].tolist(),
            y=both["effect_y"].tolist(),
            mode="markers",
            customdata=both[["layer", "head"]].to_numpy().tolist(),
            marker={
                "color": CONSTRAINED,
                "size": 8,
                "opacity": 0.65,
                "line": {"color": "#ffffff", "width": 1},
            },
            hovertemplate=(
                f"<b>{place}</b><br>"
                f"{label(x_name)}: %{{x:.4g}}<br>{label(y_name)}: %{{y:.4g}}<extra></extra>"
            ),
        )
    )
    themed(
        figure,
        width=680,
        height=460,
        title={
            "text": f"Spearman {MISSING if spearman != spearman else format_number(spearman)}, "
            f"{len(both)} {kind}s"
        },
    )
    figure.update_xaxes(title_text=f"effect by {label(x_name)} ({label(unit)})", **ZERO_LINE)
    figure.update_yaxes(title_text=f"effect by {label(y_name)} ({label(unit)})", **ZERO_LINE)
    return figure
