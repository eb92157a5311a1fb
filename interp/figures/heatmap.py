"""The head heat map: layer × head, one cell a head.

Three things can be read without colour: which heads are selected (a framed cell), which effects are
significant (a cell with a sign in it; the others are faded), and their direction (the sign).
Positive means that patching or constraining the head moves the answer towards the true object.
"""

from collections.abc import Iterable
from typing import Any

from interp.errors import UserError
from interp.figures.tables import rows_of_site, where
from interp.figures.theme import (
    CONSTRAINED,
    INK,
    ZERO_LINE,
    centred,
    interval_bars,
    label,
    signed_bars,
    themed,
)
from interp.lazy import go, pd

FADED = "rgba(238,239,241,0.66)"
_HOVER = ["effect", "ci_low", "ci_high", "q_value", "rank"]


def head_heatmap(
    heads: "pd.DataFrame",
    *,
    site: str | None = None,
    fdr: float = 0.05,
    title: str | None = None,
    unit: str = "logits",
) -> "go.Figure":
    """Effect of every head, y = layer (0 on top), x = head, on a scale centred at zero.

    Args:
        heads: a table with the columns of `heads.csv`.
        site: which site to draw; needed where the table has several.
        fdr: cells with a q-value above this, or without one, are faded.
        unit: of the effects.

    Raises:
        UserError: `site` is missing although there are several, or is not in the table.
    """
    rows = rows_of_site(heads, site)
    significant = [bool(q_value <= fdr) for q_value in rows["q_value"]]
    selected = where(rows, rows["selected"])
    effects = rows["effect"].tolist()
    notes = ["<br><b>selected</b>" if chosen else "" for chosen in rows["selected"]]
    shown = zip(effects, significant, strict=True)
    signs = [("+" if effect > 0 else "−") if clear else "" for effect, clear in shown]
    hover = [[*row, note] for row, note in zip(rows[_HOVER].to_numpy(object), notes, strict=True)]
    axes = {
        "x": list(range(int(rows["head"].max()) + 1)),
        "y": list(range(int(rows["layer"].max()) + 1)),
    }
    figure = go.Figure()
    figure.add_heatmap(
        **axes,
        z=_grid(rows, effects),
        text=_grid(rows, signs, empty=""),
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=_grid(rows, hover),
        **centred(float(rows["effect"].abs().max()) or 1.0),
        hoverongaps=False,
        colorbar={
            **{"orientation": "h", "thickness": 10, "outlinewidth": 0, "nticks": 5},
            **{"x": 0.5, "y": 1.0, "ypad": 4, "yanchor": "bottom", "tickfont": {"size": 11}},
            "title": {"text": f"effect ({label(unit)})", "side": "top", "font": {"size": 12}},
        },
        hovertemplate=(
            "<b>layer %{y}, head %{x}</b><br>"
            "effect %{customdata[0]:.4g} [%{customdata[1]:.4g}, %{customdata[2]:.4g}]<br>"
            "q-value %{customdata[3]:.3g}, rank %{customdata[4]}%{customdata[5]}<extra></extra>"
        ),
    )
    # A translucent grey layer over the cells that are not significant.
    figure.add_heatmap(
        **axes,
        z=_grid(rows, [None if clear else 1 for clear in significant]),
        colorscale=[[0, FADED], [1, FADED]],
        **{"zmin": 0, "zmax": 1, "xgap": 1, "ygap": 1, "showscale": False, "hoverinfo": "skip"},
    )
    _frame(figure, selected, thick=2.5 if len(axes["x"]) <= 24 else 1.5)
    faded = f"faded: q > {fdr:g} ({len(rows) - sum(significant)} of {len(rows)})"
    _add_legend(figure, {f"selected ({len(selected)})": INK, faded: "#e6e7ea"})
    _lay_out(figure, n_layers=len(axes["y"]), n_heads=len(axes["x"]), title=title)
    return figure


def chosen_heads(heads: Iterable[tuple[int, int]]) -> "go.Figure":
    """A square for each head, y = layer (0 on top), x = head. Raises UserError for no heads."""
    pairs = list(heads)
    if not pairs:
        raise UserError("there are no heads to show")
    layers, numbers = [layer for layer, _ in pairs], [head for _, head in pairs]
    figure = go.Figure(
        go.Scatter(
            x=numbers,
            y=layers,
            mode="markers",
            marker={"symbol": "square", "size": 14, "color": CONSTRAINED},
            hovertemplate="<b>layer %{y}, head %{x}</b><extra></extra>",
        )
    )
    themed(
        figure,
        width=max(380, 42 * (max(numbers) + 1) + 90),
        height=max(240, 20 * (max(layers) + 1) + 110),
        margin={"t": 24},
    )
    figure.update_xaxes(title_text="head", range=[-0.5, max(numbers) + 0.5], dtick=1)
    return figure.update_yaxes(
        title_text="layer", range=[max(layers) + 0.5, -0.5], dtick=1 if max(layers) < 12 else 5
    )


def layer_effects(layers: "pd.DataFrame", *, unit: str = "logits") -> "go.Figure":
    """The sum of each layer's effects as a bar with its 95 % interval.

    `layers` as `interp.heads.effects.effects_by_layer` returns it.
    """
    effects = layers["effect"].tolist()
    figure = go.Figure(
        go.Bar(
            x=layers["layer"].tolist(),
            y=effects,
            error_y=interval_bars(layers, "effect", color=INK, thickness=1.2, width=3),
            marker=signed_bars(effects),
            customdata=layers[["ci_low", "ci_high", "significant"]].to_numpy(dtype=float).tolist(),
            hovertemplate=(
                "<b>layer %{x}</b><br>%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}] "
                f"{label(unit)}<br>%{{customdata[2]:d}} significant heads<extra></extra>"
            ),
        )
    )
    themed(figure, height=380, bargap=0.25, margin={"t": 24})
    figure.update_xaxes(
        title_text="layer", showgrid=False, tick0=0, dtick=1 if len(layers) <= 12 else 5
    )
    return figure.update_yaxes(title_text=f"sum of the heads' effects ({label(unit)})", **ZERO_LINE)


def _grid(rows: "pd.DataFrame", values: Iterable[Any], *, empty: Any = None) -> list[list[Any]]:
    """One value a row of the table as a matrix layer × head; ``empty`` where there is no row."""
    grid = [[empty] * (int(rows["head"].max()) + 1) for _ in range(int(rows["layer"].max()) + 1)]
    for layer, head, value in zip(rows["layer"], rows["head"], values, strict=True):
        grid[layer][head] = value
    return grid


def _frame(figure: "go.Figure", selected: "pd.DataFrame", *, thick: float) -> None:
    """Frame the selected cells: a dark line on a white one, visible on any colour of cell."""
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, head in zip(selected["layer"], selected["head"], strict=True):
        x += [head - 0.46, head + 0.46, head + 0.46, head - 0.46, head - 0.46, None]
        y += [layer - 0.46, layer - 0.46, layer + 0.46, layer + 0.46, layer - 0.46, None]
    for colour, width in (("#ffffff", 2 * thick), (INK, thick)):
        line = {"color": colour, "width": width, "shape": "linear"}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip")


def _add_legend(figure: "go.Figure", entries: dict[str, str]) -> None:
    """Legend entries for the frames and the faded cells: markers without a position."""
    for symbol, (name, colour) in zip(("square-open", "square"), entries.items(), strict=True):
        marker = {"symbol": symbol, "size": 12, "color": colour}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name)


def _lay_out(figure: "go.Figure", *, n_layers: int, n_heads: int, title: str | None) -> None:
    cell = min(26, max(13, 620 // n_layers))
    top = 96 if title else 72
    themed(
        figure,
        width=max(380, min(1100, n_heads * 42 + 90)),
        height=n_layers * cell + top + 88,
        margin={"l": 56, "r": 14, "t": top, "b": 88},
        legend={"yref": "container", "y": 0.0, "yanchor": "bottom"},
    )
    if title:
        # plotly shifts a layout title when a horizontal colour bar stands above the plot.
        figure.add_annotation(
            **{"x": 0, "xref": "paper", "xanchor": "left"},
            **{"y": 1, "yref": "paper", "yanchor": "top", "yshift": top - 10},
            **{"text": label(title), "showarrow": False, "font": {"size": 15}},
        )
    figure.update_xaxes(
        title_text="head",
        range=[-0.5, n_heads - 0.5],
        dtick=1 if n_heads <= 16 else 4,
        **{"showgrid": False, "showline": False, "constrain": "domain"},
    )
    figure.update_yaxes(
        title_text="layer",
        range=[n_layers - 0.5, -0.5],
        dtick=1 if cell >= 18 else 5 if n_layers <= 60 else 10,
        **{"showgrid": False, "showline": False},
    )
