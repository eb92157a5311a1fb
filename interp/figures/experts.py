"""Figures of experts: their effects, agreement with routing, and contributions to heads."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float

from interp.errors import UserError
from interp.figures.tables import where
from interp.figures.theme import (
    BASELINE,
    CATEGORIES,
    CONSTRAINED_BAR,
    FAINT_INK,
    INK,
    LEGEND_ABOVE,
    MUTED,
    SEQUENTIAL,
    STRIPES,
    ZERO_LINE,
    cells,
    centred,
    colour_bar,
    label,
    themed,
)
from interp.lazy import go, pd


def effects_figure(
    matrix: Float[np.ndarray, "projection expert task"],
    *,
    projections: Sequence[str],
    tasks: Sequence[str],
    source: str,
    top: int = 30,
) -> "go.Figure":
    """A heat map expert × task of the ``top`` experts by largest absolute effect on any task.

    Args:
        matrix: change of the loss, nats per answer token; NaN where there is no such expert.
        projections, tasks: the names along these axes.
        source: what was done to each expert, such as ``off``, for the title.
    """
    size = np.nan_to_num(np.abs(matrix)).max(axis=-1)
    order = np.argsort(-size.ravel(), kind="stable")
    order = order[~np.isnan(matrix).all(axis=-1).ravel()[order]][:top]
    width = matrix.shape[1]
    rows = [f"{projections[index // width]}, expert {index % width}" for index in order]
    values = matrix.reshape(-1, matrix.shape[-1])[order]
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    figure = go.Figure()
    figure.add_heatmap(
        x=[label(task) for task in tasks],
        y=[label(row) for row in rows],
        z=cells(values),
        **centred(limit),
        hoverongaps=False,
        colorbar={"title": {"text": "change of loss,<br>nats per token"}},
        hovertemplate="<b>%{y}</b><br>%{x}: %{z:.4g} nats per answer token<extra></extra>",
    )
    title = f"Experts, {label(source)}: change of loss by task (positive: it hurts)"
    return themed(
        figure,
        title={"text": title},
        height=max(260, 22 * len(rows) + 150),
        xaxis={"title": "task", "showgrid": False},
        yaxis={"title": "projection, expert", "autorange": "reversed", "showgrid": False},
    )


def agreement_figure(table: "pd.DataFrame") -> "go.Figure":
    """A point for each expert: effect against load, both minus the other tasks' mean.

    ``table`` as ``RoutingAgreement.to_dataframe`` returns it. Filled points are experts that affect
    the task routed to them most the most; small points are experts without a significant effect.
    """
    figure = go.Figure()
    for agree, name, colour, symbol in (
        (True, "same task", CATEGORIES[0], "circle"),
        (False, "another task", CATEGORIES[1], "diamond-open"),
    ):
        rows = where(table, table["agree"] == agree)
        figure.add_scatter(
            x=(rows["load"] - rows["load_elsewhere"]).tolist(),
            y=(rows["effect"] - rows["effect_elsewhere"]).tolist(),
            mode="markers",
            name=f"routed most and affected most: {name}",
            marker={
                "symbol": symbol,
                "color": [colour if clear else FAINT_INK for clear in rows["significant"]],
                "size": [9 if clear else 5 for clear in rows["significant"]],
            },
            customdata=[
                [layer, label(target), expert, label(routed), label(affected), q_value]
                for layer, target, expert, routed, affected, q_value in rows[
                    ["layer", "target", "expert", "routed_task", "affected_task", "q_value"]
                ].itertuples(index=False)
            ],
            hovertemplate=(
                "<b>layer %{customdata[0]}, %{customdata[1]}, expert %{customdata[2]}</b><br>"
                "routed most: %{customdata[3]}, %{x:.3g} above the other tasks<br>"
                "affected most: %{customdata[4]}, %{y:.3g} nats above<br>"
                "q-value %{customdata[5]:.3g}<extra></extra>"
            ),
        )
    themed(figure, height=460, legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="load above the other tasks' (share)", **ZERO_LINE)
    return figure.update_yaxes(
        title_text="effect above the other tasks' (nats per answer token)", **ZERO_LINE
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
) -> "go.Figure":
    """Part of each head's norm, y = layer (0 on top), x = head; hovering lists every expert's.

    Args:
        whole, by_expert: norm of the adapter's and of each expert's contribution, relative to the
            head's; NaN where there is no such expert.
        shares: each expert's share of the head's vector.
        component: ``q``, ``k`` or ``v``.
        at: which tokens the values are of.
        unit_axis: ``head`` or ``kv_head``.
        query_heads: the query heads that each unit serves, where one unit serves several.
        expert: draw this expert; by default the whole adapter.

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
        z=cells(shown),
        text=hover,
        colorscale=[list(stop) for stop in SEQUENTIAL],
        zmin=0.0,
        **{"xgap": 1, "ygap": 1, "hoverongaps": False},
        hovertemplate="<b>layer %{y}</b>, %{text}<extra></extra>",
        colorbar=colour_bar("part of the head's norm"),
    )
    whose = "all experts" if expert is None else f"expert {expert}"
    cell = min(26, max(13, 620 // layers))
    themed(
        figure,
        width=max(420, min(1100, units * 42 + 190)),
        height=layers * cell + 140,
        title={"text": label(f"{component}, {whose}, at {at}")},
    )
    axis = "head" if unit_axis == "head" else "key/value head"
    figure.update_xaxes(title_text=axis, dtick=1 if units <= 16 else 4, showgrid=False)
    figure.update_yaxes(title_text="layer", autorange="reversed", showgrid=False)
    return figure


def _lines(name: str, parts: np.ndarray, shares: np.ndarray) -> str:
    """The hover text of a head: every expert's part and share."""
    rows = [
        f"expert {number}: part {part:.3f}, share {shares[number]:+.3f}"
        for number, part in enumerate(parts)
        if not np.isnan(part)
    ]
    return "<br>".join([name, *rows])


def feeding_figure(experts: "pd.DataFrame", count: int = 20) -> "go.Figure":
    """The first experts' part in the chosen heads, beside that in the other heads of the layer.

    ``experts`` as ``ExpertFeeding.to_dataframe`` returns it.
    """
    rows = experts.head(count)
    identity = zip(rows["component"], rows["layer"], rows["expert"], strict=True)
    names = [f"{component} {layer} expert {expert}" for component, layer, expert in identity]
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
    themed(figure, height=420, barmode="group", legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="component, layer, expert", showgrid=False)
    return figure.update_yaxes(title_text="part of the head's norm (share)")


def shift_figure(
    effects: "pd.DataFrame",
    *,
    spearman: tuple[float, float, float],
    heads: Collection[tuple[int, int]] = (),
) -> "go.Figure":
    """Effect after against effect before, in logits; heads on the diagonal have not changed.

    Args:
        effects: as ``HeadComparison.to_dataframe`` returns it.
        spearman: the rank correlation of the two: value, low, high.
        heads: (layer, head) of the heads to mark.
    """
    marked = [pair in heads for pair in zip(effects["layer"], effects["head"], strict=True)]
    figure = go.Figure()
    low = float(effects[["before", "after"]].min().min())
    high = float(effects[["before", "after"]].max().max())
    figure.add_scatter(
        **{"x": [low, high], "y": [low, high], "mode": "lines", "hoverinfo": "skip"},
        **{"name": "no change", "line": {"color": MUTED, "dash": "dot", "width": 1}},
    )
    for wanted, name, colour, symbol in (
        (False, "heads", FAINT_INK, "circle"),
        (True, "selected heads", INK, "diamond"),
    ):
        rows = where(effects, pd.Series(marked) == wanted)
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
    title = {"text": f"Spearman {value:.2f} [{ci_low:.2f}, {ci_high:.2f}]"}
    themed(figure, height=480, title=title)
    figure.update_xaxes(title_text="effect before (logits)")
    return figure.update_yaxes(title_text="effect after (logits)")
