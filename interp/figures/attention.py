"""The figure of attention patterns: a heat map query × key for each head, spans marked.

Darker is more attention. The columns of a span stand between two dashed lines with the span's name
above, and its tokens are bold on both axes. What goes to tokens before the first one shown is added
up in one column, since a chat template's first token often takes most of it; the scale ends at the
largest of the other cells.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from interp.errors import UserError
from interp.figures.theme import SEQUENTIAL, THEME, label
from interp.figures.token_axis import Span, check_start, mark_spans, names, ticks, with_earlier

MAX_HEADS = 6
_CELL = 18
_ABOVE, _BELOW, _BETWEEN = 60, 110, 190


def attention_figure(
    patterns: Float[np.ndarray, "head query key"],
    tokens: Sequence[str],
    *,
    heads: Sequence[tuple[int, int]],
    spans: Mapping[str, Span],
    start: int = 0,
) -> go.Figure:
    """Heat maps one below the other, y = query (first on top), x = key.

    Args:
        patterns: shares of each query's attention.
        tokens: the prompt's tokens as text.
        heads: (layer, head) of each pattern.
        spans: by name, pieces of the prompt to mark.
        start: the first token with a row and a column of its own.

    Raises:
        UserError: a start that is no token, or more heads than ``MAX_HEADS``.
    """
    n_heads = len(heads)
    check_start(start, len(tokens))
    if n_heads > MAX_HEADS:
        raise UserError(f"{n_heads} heads are too many for one figure: show at most {MAX_HEADS}")
    queries = ticks(tokens, spans, start)
    keys = with_earlier(queries, start, "({} before)")
    shown = range(len(queries))
    side = _CELL * len(shown)
    drawn = n_heads * side + (n_heads - 1) * _BETWEEN
    figure = make_subplots(
        rows=n_heads, cols=1, vertical_spacing=_BETWEEN / drawn if n_heads > 1 else 0.0
    )
    first = -1 if start else 0
    grids = [_grid(pattern, start) for pattern in patterns]
    # The one column of all that came before would hide the rest: it is not what sets the scale.
    limit = max(float(np.nanmax(grid[:, -len(shown) :])) for grid in grids) or 1.0
    for row, ((layer, head), grid) in enumerate(zip(heads, grids, strict=True), start=1):
        figure.add_heatmap(
            row=row,
            col=1,
            x=list(range(first, len(shown))),
            y=list(shown),
            z=[[None if np.isnan(cell) else float(cell) for cell in line] for line in grid],
            customdata=_names(tokens, start),
            zmin=0.0,
            zmax=limit,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate="from <b>%{customdata[0]}</b> to <b>%{customdata[1]}</b>: %{z:.3f}"
            f"<extra>layer {layer}, head {head}</extra>",
        )
        _mark_spans(figure, spans, row, start)
        _add_title(figure, row, f"layer {layer}, head {head}")
        figure.update_xaxes(
            row=row,
            tickvals=list(range(first, len(shown))),
            ticktext=keys,
            tickangle=-90,
            range=[first - 0.5, len(shown) - 0.5],
            title_text="key: attended to",
        )
        figure.update_yaxes(
            row=row,
            tickvals=list(shown),
            ticktext=queries,
            range=[len(shown) - 0.5, -0.5],
            title_text="query: attends",
        )
    figure.update_xaxes(showgrid=False, showline=False, tickfont={"size": 11})
    figure.update_yaxes(showgrid=False, showline=False, tickfont={"size": 11})
    return figure.update_layout(
        template=THEME,
        width=max(420, side + 250),
        height=drawn + _ABOVE + _BELOW,
        margin={"l": 90, "r": 10, "t": _ABOVE, "b": _BELOW},
        coloraxis={
            "colorscale": [list(stop) for stop in SEQUENTIAL],
            "cmin": 0.0,
            "cmax": limit,
            "colorbar": {
                "title": {"text": "attention (share of the row)", "side": "right"},
                "thickness": 10,
                "outlinewidth": 0,
                "tickfont": {"size": 11},
            },
        },
    )


def _grid(pattern: np.ndarray, start: int) -> np.ndarray:
    """Rows and columns from ``start`` on, before them a column with the sum of the earlier ones.

    NaN above the diagonal, where a causal model cannot look.
    """
    square = pattern[start:, start:].astype(float)
    square[np.triu_indices(len(square), k=1)] = np.nan
    if not start:
        return square
    return np.concatenate([pattern[start:, :start].sum(axis=1, keepdims=True), square], axis=1)


def _names(tokens: Sequence[str], start: int) -> list[list[list[str]]]:
    """Query and key of each cell in words, for hovering."""
    queries = names(tokens, start)
    keys = with_earlier(queries, start, "the {} tokens before")
    return [[[query, key] for key in keys] for query in queries]


def _mark_spans(figure: go.Figure, spans: Mapping[str, Span], row: int, start: int) -> None:
    """Dashed lines around the columns of each span, its name above them."""
    for name, middle in mark_spans(figure, spans, start, row=row, col=1):
        figure.add_annotation(
            row=row,
            col=1,
            x=middle,
            y=-0.5,
            yanchor="bottom",
            text=label(name),
            showarrow=False,
            font={"size": 11},
        )


def _add_title(figure: go.Figure, row: int, text: str) -> None:
    figure.add_annotation(
        row=row,
        col=1,
        text=f"<b>{label(text)}</b>",
        showarrow=False,
        x=0,
        xref="x domain" if row == 1 else f"x{row} domain",
        xanchor="left",
        y=1,
        yref="y domain" if row == 1 else f"y{row} domain",
        yanchor="bottom",
        yshift=20,
    )
