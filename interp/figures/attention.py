"""The figure of attention patterns: a heat map query × key for each head, spans marked.

Darker is more attention. Two dashed lines enclose the keys of a span, with its name above, and its
tokens are bold on both axes. The attention to tokens before the first one shown is summed in one
extra key, since a chat template's first token often takes most of it; the scale ends at the largest
of the other cells.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from interp.errors import UserError
from interp.figures.theme import SEQUENTIAL, cells, colour_bar, label, themed
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
        spans: token ranges to mark, by name.
        start: the first token with a row and a column.

    Raises:
        UserError: ``start`` is not a token, or there are more than ``MAX_HEADS`` heads.
    """
    n_heads = len(heads)
    check_start(start, len(tokens))
    if n_heads > MAX_HEADS:
        raise UserError(f"{n_heads} heads are too many for one figure: show at most {MAX_HEADS}")
    side = _CELL * (len(tokens) - start)
    drawn = n_heads * side + (n_heads - 1) * _BETWEEN
    figure = make_subplots(
        rows=n_heads, cols=1, vertical_spacing=_BETWEEN / drawn if n_heads > 1 else 0.0
    )
    grids = [_grid(pattern, start) for pattern in patterns]
    # The key of all earlier tokens does not set the scale: it would hide the others.
    limit = max(float(np.nanmax(grid[:, -len(grid) :])) for grid in grids) or 1.0
    for row, (head, grid) in enumerate(zip(heads, grids, strict=True), start=1):
        name = f"layer {head[0]}, head {head[1]}"
        _add_pattern(figure, row, grid, name=name, limit=limit, hover=_hover(tokens, start))
        _mark_spans(figure, row, spans, start=start)
        _label_axes(figure, row, ticks(tokens, spans, start), start=start, name=name)
    figure.update_xaxes(showgrid=False, showline=False, tickfont={"size": 11})
    figure.update_yaxes(showgrid=False, showline=False, tickfont={"size": 11})
    bar = colour_bar("attention (share of the row)", outlinewidth=0, tickfont={"size": 11})
    scale = {"colorscale": [list(stop) for stop in SEQUENTIAL], "cmin": 0.0, "cmax": limit}
    return themed(
        figure,
        width=max(420, side + 250),
        height=drawn + _ABOVE + _BELOW,
        margin={"l": 90, "r": 10, "t": _ABOVE, "b": _BELOW},
        coloraxis={**scale, "colorbar": bar},
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


def _hover(tokens: Sequence[str], start: int) -> list[list[list[str]]]:
    """Query and key of each cell in words."""
    queries = names(tokens, start)
    keys = with_earlier(queries, start, "the {} tokens before")
    return [[[query, key] for key in keys] for query in queries]


def _add_pattern(
    figure: go.Figure,
    row: int,
    grid: np.ndarray,
    *,
    name: str,
    limit: float,
    hover: list[list[list[str]]],
) -> None:
    """The heat map of one head."""
    queries, keys = grid.shape
    figure.add_heatmap(
        **{"row": row, "col": 1, "xgap": 1, "ygap": 1, "hoverongaps": False},
        x=list(range(queries - keys, queries)),
        y=list(range(queries)),
        z=cells(grid),
        customdata=hover,
        **{"zmin": 0.0, "zmax": limit, "coloraxis": "coloraxis"},
        hovertemplate="from <b>%{customdata[0]}</b> to <b>%{customdata[1]}</b>: %{z:.3f}"
        f"<extra>{name}</extra>",
    )


def _mark_spans(figure: go.Figure, row: int, spans: Mapping[str, Span], *, start: int) -> None:
    """Dashed lines around the keys of each span, its name above them."""
    for name, middle in mark_spans(figure, spans, start, row=row, col=1):
        figure.add_annotation(
            **{"row": row, "col": 1, "showarrow": False, "font": {"size": 11}},
            **{"x": middle, "y": -0.5, "yanchor": "bottom", "text": label(name)},
        )


def _label_axes(figure: go.Figure, row: int, queries: list[str], *, start: int, name: str) -> None:
    """The head's name, and a tick for each query and key, and for the earlier tokens if any."""
    number = "" if row == 1 else row
    figure.add_annotation(
        **{"row": row, "col": 1, "showarrow": False, "text": f"<b>{label(name)}</b>"},
        **{"x": 0, "xref": f"x{number} domain", "xanchor": "left"},
        **{"y": 1, "yref": f"y{number} domain", "yanchor": "bottom", "yshift": 20},
    )
    last, first = len(queries) - 0.5, -1 if start else 0
    figure.update_xaxes(
        row=row,
        tickvals=list(range(first, len(queries))),
        ticktext=with_earlier(queries, start, "({} before)"),
        tickangle=-90,
        range=[first - 0.5, last],
        title_text="key: attended to",
    )
    figure.update_yaxes(
        row=row,
        tickvals=list(range(len(queries))),
        ticktext=queries,
        range=[last, -0.5],
        title_text="query: attends",
    )
