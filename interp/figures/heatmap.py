"""The head heat map: layer × head, one cell a head.

Three things can be read without colour: what is selected (a framed cell), what is significant
(a cell with a sign in it; the others are faded), and which way it goes (the sign). Positive means
that patching or constraining the head moves the answer towards the true object.
"""

from collections.abc import Iterable

import pandas as pd
import plotly.graph_objects as go

from interp.errors import UserError
from interp.figures.tables import rows_of_site
from interp.figures.theme import CONSTRAINED, INK, THEME, centred, label

FADED = "rgba(238,239,241,0.66)"


def head_heatmap(
    heads: pd.DataFrame,
    *,
    site: str | None = None,
    fdr: float = 0.05,
    title: str | None = None,
    unit: str = "logits",
) -> go.Figure:
    """Effect of every head, y = layer (0 on top), x = head, on a scale centred at zero.

    `heads` as in `heads.csv`; `effect` in `unit`. Cells with q above `fdr` (or without a q) are
    faded. Hovering a cell gives its row of the table. Raises UserError if `heads` holds several
    sites and `site` names none, or one that is not there.
    """
    rows = rows_of_site(heads, site)
    grid = _Grid(rows, fdr=fdr)
    limit = float(rows["effect"].abs().max()) or 1.0
    figure = go.Figure()
    figure.add_heatmap(
        x=grid.heads,
        y=grid.layers,
        z=grid.effects,
        text=grid.signs,
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=grid.hover,
        **centred(limit),
        hoverongaps=False,
        colorbar={
            "orientation": "h",
            "thickness": 10,
            "x": 0.5,
            "y": 1.0,
            "ypad": 4,
            "yanchor": "bottom",
            "title": {"text": f"effect ({label(unit)})", "side": "top", "font": {"size": 12}},
            "tickfont": {"size": 11},
            "outlinewidth": 0,
            "nticks": 5,
        },
        hovertemplate=(
            "<b>layer %{y}, head %{x}</b><br>"
            "effect %{customdata[0]:.4g} [%{customdata[1]:.4g}, %{customdata[2]:.4g}]<br>"
            "q-value %{customdata[3]:.3g}, rank %{customdata[4]}%{customdata[5]}<extra></extra>"
        ),
    )
    _fade(figure, grid)
    _frame(figure, grid)
    _lay_out(figure, grid, fdr=fdr, title=title)
    return figure


def chosen_heads(heads: Iterable[tuple[int, int]]) -> go.Figure:
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
    figure.update_layout(
        template=THEME,
        width=max(380, 42 * (max(numbers) + 1) + 90),
        height=max(240, 20 * (max(layers) + 1) + 110),
        margin={"t": 24},
    )
    figure.update_xaxes(title_text="head", range=[-0.5, max(numbers) + 0.5], dtick=1)
    return figure.update_yaxes(
        title_text="layer", range=[max(layers) + 0.5, -0.5], dtick=1 if max(layers) < 12 else 5
    )


class _Grid:
    """The table as matrices, row = layer, column = head; None where a head has no row."""

    def __init__(self, rows: pd.DataFrame, *, fdr: float) -> None:
        self.layers = list(range(int(rows["layer"].max()) + 1))
        self.heads = list(range(int(rows["head"].max()) + 1))
        self.effects: list[list[float | None]] = self._empty(None)
        self.signs = self._empty("")
        self.veil: list[list[int | None]] = self._empty(None)
        self.hover = self._empty(None)
        self.selected: list[tuple[int, int]] = []
        self.n_heads = len(rows)
        self.n_faded = 0
        columns = ["layer", "head", "effect", "ci_low", "ci_high", "q_value", "rank", "selected"]
        for row in rows[columns].itertuples(index=False):
            layer, head, effect, low, high, q_value, rank, selected = row
            significant = bool(q_value <= fdr)
            self.n_faded += not significant
            self.effects[layer][head] = effect
            self.signs[layer][head] = ("+" if effect > 0 else "−") if significant else ""
            self.veil[layer][head] = None if significant else 1
            note = "<br><b>selected</b>" if selected else ""
            self.hover[layer][head] = [effect, low, high, q_value, rank, note]
            if selected:
                self.selected.append((layer, head))

    def _empty(self, value: object) -> list[list]:
        return [[value for _ in self.heads] for _ in self.layers]


def _fade(figure: go.Figure, grid: _Grid) -> None:
    """Lay a grey veil over the cells that are not significant."""
    figure.add_heatmap(
        x=grid.heads,
        y=grid.layers,
        z=grid.veil,
        colorscale=[[0, FADED], [1, FADED]],
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        showscale=False,
        hoverinfo="skip",
    )


def _frame(figure: go.Figure, grid: _Grid) -> None:
    """Frame the selected cells: a dark line on a white one, seen on any colour of cell."""
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, head in grid.selected:
        x += [head - 0.46, head + 0.46, head + 0.46, head - 0.46, head - 0.46, None]
        y += [layer - 0.46, layer - 0.46, layer + 0.46, layer + 0.46, layer - 0.46, None]
    thick = 2.5 if len(grid.heads) <= 24 else 1.5
    for colour, width in (("#ffffff", 2 * thick), (INK, thick)):
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": colour, "width": width, "shape": "linear"},
            showlegend=False,
            hoverinfo="skip",
        )


def _lay_out(figure: go.Figure, grid: _Grid, *, fdr: float, title: str | None) -> None:
    layers, heads = len(grid.layers), len(grid.heads)
    cell = min(26, max(13, 620 // layers))
    top = 96 if title else 72
    # Markers at no place: they only stand in the legend, for the frames and for the veil.
    for symbol, colour, name in (
        ("square-open", INK, f"selected ({len(grid.selected)})"),
        ("square", "#e6e7ea", f"faded: q > {fdr:g} ({grid.n_faded} of {grid.n_heads})"),
    ):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": symbol, "size": 12, "color": colour},
            name=name,
        )
    figure.update_layout(
        template=THEME,
        width=max(380, min(1100, heads * 42 + 90)),
        height=layers * cell + top + 88,
        margin={"l": 56, "r": 14, "t": top, "b": 88},
        legend={"yref": "container", "y": 0.0, "yanchor": "bottom"},
    )
    if title:
        # plotly shifts a layout title when a horizontal colour bar stands above the plot.
        figure.add_annotation(
            text=label(title),
            x=0,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="top",
            yshift=top - 10,
            showarrow=False,
            font={"size": 15},
        )
    figure.update_xaxes(
        title_text="head",
        range=[-0.5, heads - 0.5],
        dtick=1 if heads <= 16 else 4,
        showgrid=False,
        showline=False,
        constrain="domain",
    )
    figure.update_yaxes(
        title_text="layer",
        range=[layers - 0.5, -0.5],
        dtick=1 if cell >= 18 else 5 if layers <= 60 else 10,
        showgrid=False,
        showline=False,
    )
