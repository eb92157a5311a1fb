"""The figure of a logit lens: the likeliest token after each layer at each position."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from interp.figures.theme import (
    SEQUENTIAL,
    cells,
    centred,
    colour_bar,
    label,
    themed,
    token_label,
)
from interp.lazy import go

_CELL, _ROW = 74, 20


def lens_figure(
    values: Float[np.ndarray, "layer pos"],
    tops: Sequence[Sequence[str]],
    tokens: Sequence[str],
    *,
    start: int = 0,
    unit: str | None = None,
) -> "go.Figure":
    """A grid, y = layers that have run (most on top), x = position, with the likeliest tokens.

    Args:
        values: what the cells are coloured by.
        tops: the likeliest token of each cell, as text.
        tokens: what stands at each position.
        start: the number of the first position.
        unit: of values with a sign; None for probabilities from 0 to 1.
    """
    n_layers, n_positions = values.shape
    known = np.abs(values[~np.isnan(values)])
    if unit is None:
        scale = {"colorscale": [list(stop) for stop in SEQUENTIAL], "zmin": 0.0, "zmax": 1.0}
        title, bar = "probability", "probability of the likeliest token"
    else:
        # One outlier, mostly in the embedding's row, would leave all other cells pale.
        scale = centred(float(np.quantile(known, 0.99)) if known.size else 1.0)
        title, bar = "logits", f"logits: {token_label(unit, longest=40)}"
    columns = list(range(start, start + n_positions))
    # Only the tokens from ``start`` on are given: the position is counted from the prompt's first.
    places = [
        f"{token_label(token)} ({column})" for token, column in zip(tokens, columns, strict=True)
    ]
    hover = [
        [[token_label(top, longest=40), place] for top, place in zip(row, places, strict=True)]
        for row in tops
    ]
    figure = go.Figure()
    figure.add_heatmap(
        **{**scale, "xgap": 1, "ygap": 1},
        x=columns,
        y=list(range(n_layers)),
        z=cells(values),
        text=[[token_label(top, longest=9) for top in row] for row in tops],
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=hover,
        colorbar=colour_bar(bar, size=12),
        hovertemplate="after %{y} layers, at <b>%{customdata[1]}</b><br>likeliest: "
        f"<b>%{{customdata[0]}}</b><br>{label(title)} %{{z:.3g}}<extra></extra>",
    )
    ticks = [token_label(token, longest=12) for token in tokens]
    figure.update_xaxes(
        tickvals=columns, ticktext=ticks, tickangle=-60, title_text="reads", showgrid=False
    )
    figure.update_yaxes(title_text="layers that have run", showgrid=False)
    return themed(
        figure,
        title={"text": "logit lens: the likeliest next token"},
        width=230 + _CELL * n_positions,
        height=200 + _ROW * n_layers,
    )
