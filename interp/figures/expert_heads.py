"""Figures of experts in heads: their part in every head, who feeds chosen heads, what moved."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from interp.errors import UserError
from interp.figures.tables import where
from interp.figures.theme import (
    BASELINE,
    CONSTRAINED_BAR,
    FAINT_INK,
    INK,
    MUTED,
    SEQUENTIAL,
    STRIPES,
    THEME,
    label,
)


def contribution_figure(
    whole: Float[np.ndarray, "layer unit"],
    by_expert: Float[np.ndarray, "layer unit expert"],
    *,
    shares: Float[np.ndarray, "layer unit expert"],
    component: str,
    at: str,
    unit_axis: str = "head",
    query_heads: Sequence[str] | None = None,
    expert: int | None = None,
) -> go.Figure:
    """Part of each head's norm, y = layer (0 on top), x = head; hovering lists every expert's.

    Args:
        whole, by_expert: the part that the whole adapter makes up, and each expert; NaN where
            there is no such expert.
        shares: each expert's share of the head's vector.
        component: ``q``, ``k`` or ``v``.
        at: which tokens were looked at.
        unit_axis: ``head`` or ``kv_head``.
        query_heads: the query heads that each unit serves, where one unit serves several.
        expert: draw this one's part; by default the whole adapter's.

    Raises:
        UserError: an unknown expert.
    """
    n_experts = by_expert.shape[2]
    if expert is not None and not 0 <= expert < n_experts:
        raise UserError(f"expert {expert} does not exist: the experts are 0 to {n_experts - 1}")
    shown = whole if expert is None else by_expert[..., expert]
    layers, units = shown.shape
    names = [f"{unit_axis.replace('_', ' ')} {unit}" for unit in range(units)]
    if query_heads is not None:
        names = [
            f"{name}, serving query heads {heads}"
            for name, heads in zip(names, query_heads, strict=True)
        ]
    hover = [
        [_lines(name, *both) for name, *both in zip(names, *of_layer, strict=True)]
        for of_layer in zip(by_expert, shares, strict=True)
    ]
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(units)),
        y=list(range(layers)),
        z=[[None if np.isnan(cell) else float(cell) for cell in row] for row in shown],
        text=hover,
        colorscale=[list(stop) for stop in SEQUENTIAL],
        zmin=0.0,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="<b>layer %{y}</b>, %{text}<extra></extra>",
        colorbar={"title": {"text": "part of the head's norm", "side": "right"}, "thickness": 10},
    )
    whose = "all experts" if expert is None else f"expert {expert}"
    cell = min(26, max(13, 620 // layers))
    figure.update_layout(
        template=THEME,
        width=max(420, min(1100, units * 42 + 190)),
        height=layers * cell + 140,
        title={"text": label(f"{component}, {whose}, at {at}")},
    )
    axis = "head" if unit_axis == "head" else "key/value head"
    figure.update_xaxes(title_text=axis, dtick=1 if units <= 16 else 4, showgrid=False)
    figure.update_yaxes(title_text="layer", autorange="reversed", showgrid=False)
    return figure


def _lines(name: str, parts: np.ndarray, shares: np.ndarray) -> str:
    """What hovering a head shows: every expert's part and share."""
    rows = [
        f"expert {number}: part {part:.3f}, share {shares[number]:+.3f}"
        for number, part in enumerate(parts)
        if not np.isnan(part)
    ]
    return "<br>".join([name, *rows])


def feeding_figure(experts: pd.DataFrame, count: int = 20) -> go.Figure:
    """The first experts' part in the chosen heads, beside that in the other heads of the layer.

    ``experts`` as ``ExpertFeeding.to_dataframe`` gives it.
    """
    rows = experts.head(count)
    names = [
        f"{one.component} {one.layer} expert {one.expert}" for one in rows.itertuples(index=False)
    ]
    figure = go.Figure()
    for column, name, colour, pattern in (
        ("relative_norm", "chosen heads", CONSTRAINED_BAR, "/"),
        ("others", "other heads of the layer", BASELINE, ""),
    ):
        figure.add_bar(
            x=names,
            y=rows[column].tolist(),
            name=name,
            marker={"color": colour, "pattern": {"shape": pattern, **STRIPES}},
            customdata=rows[["gate", "p_value", "q_value"]].to_numpy(dtype=float).tolist(),
            hovertemplate=(
                "%{x}<br>part %{y:.4f}, gate %{customdata[0]:.2f}<br>"
                f"p %{{customdata[1]:.3g}}, q %{{customdata[2]:.3g}}<extra>{name}</extra>"
            ),
        )
    figure.update_layout(
        template=THEME, height=420, barmode="group", legend={"y": 1.02, "yanchor": "bottom"}
    )
    figure.update_xaxes(title_text="component, layer, expert", showgrid=False)
    return figure.update_yaxes(title_text="part of the head's norm (share)")


def shift_figure(
    effects: pd.DataFrame,
    *,
    spearman: tuple[float, float, float],
    heads: Collection[tuple[int, int]] = (),
) -> go.Figure:
    """Effect after against effect before, in logits; on the diagonal nothing has changed.

    Args:
        effects: as ``HeadComparison.to_dataframe`` gives it.
        spearman: the rank correlation of the two: value, low, high.
        heads: (layer, head) of those to mark.
    """
    marked = [pair in heads for pair in zip(effects["layer"], effects["head"], strict=True)]
    figure = go.Figure()
    low = float(effects[["before", "after"]].min().min())
    high = float(effects[["before", "after"]].max().max())
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        name="no change",
        hoverinfo="skip",
        line={"color": MUTED, "dash": "dot", "width": 1},
    )
    for wanted, name, colour, symbol in (
        (False, "heads", FAINT_INK, "circle"),
        (True, "selected heads", INK, "diamond"),
    ):
        rows = where(effects, pd.Series([one == wanted for one in marked]))
        if rows.empty:
            continue
        figure.add_scatter(
            x=rows["before"].tolist(),
            y=rows["after"].tolist(),
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 10 if wanted else 6},
            customdata=rows[["layer", "head", "q_value"]].to_numpy(dtype=float).tolist(),
            hovertemplate=(
                "layer %{customdata[0]:d}, head %{customdata[1]:d}<br>before %{x:.4g}, "
                "after %{y:.4g}<br>q of the change %{customdata[2]:.3g}<extra></extra>"
            ),
        )
    value, ci_low, ci_high = spearman
    figure.update_layout(
        template=THEME,
        height=480,
        title={"text": f"Spearman {value:.2f} [{ci_low:.2f}, {ci_high:.2f}]"},
    )
    figure.update_xaxes(title_text="effect before (logits)")
    return figure.update_yaxes(title_text="effect after (logits)")
