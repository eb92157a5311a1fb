"""Token saliency to look at: bars over the tokens, and the text with a coloured ground.

Orange (positive) speaks for the answer asked about, purple (negative) against it. In print the
sign is told by the bar's side of zero, and in the text by a raised + or −; marked spans are bold.
"""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale

from interp.figures.theme import (
    DIVERGING,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    STRIPES,
    THEME,
    label,
)
from interp.figures.token_axis import Span, check_start, mark_spans, names, ticks, with_earlier

_STRONG = 1 / 3
"""Tokens from this share of the largest on get a raised sign."""


def saliency_figure(
    values: Float[np.ndarray, " token"],
    tokens: Sequence[str],
    *,
    metric: str,
    value: float,
    unit: str,
    method: str,
    spans: Mapping[str, Span],
    start: int = 0,
) -> go.Figure:
    """A bar for each token from ``start`` on, and one for the sum of those before.

    Args:
        values: saliency of each token, in ``unit``.
        tokens: the prompt's tokens as text.
        metric, value: what the tokens move, in words, and what it is on this prompt.
        method: how the saliency was computed.
        spans: by name, pieces of the prompt to mark.

    Raises:
        UserError: a start that is no token.
    """
    check_start(start, len(tokens))
    labels = with_earlier(ticks(tokens, spans, start), start, "({} before)")
    hover = with_earlier(names(tokens, start), start, "the {} tokens before")
    earlier = [float(values[:start].sum())] if start else []
    heights = [*earlier, *values[start:].tolist()]
    places = list(range(-len(earlier), len(tokens) - start))
    figure = go.Figure(
        go.Bar(
            x=places,
            y=heights,
            customdata=hover,
            marker={
                "color": [POSITIVE if value >= 0 else NEGATIVE for value in heights],
                "opacity": 0.85,
                "pattern": {"shape": ["" if value >= 0 else "/" for value in heights], **STRIPES},
            },
            hovertemplate=f"<b>%{{customdata}}</b><br>%{{y:.4g}} {label(unit)}<extra></extra>",
        )
    )
    for name, middle in mark_spans(figure, spans, start):
        figure.add_annotation(
            x=middle,
            y=1,
            yref="paper",
            yanchor="bottom",
            text=label(name),
            showarrow=False,
            font={"size": 12},
        )
    figure.update_layout(
        template=THEME,
        height=380,
        width=max(420, 24 * len(places) + 110),
        margin={"b": 110, "t": 70},
        bargap=0.2,
        title={"text": label(f"{metric} = {value:.3g} {unit}")},
    )
    figure.update_xaxes(
        tickvals=places, ticktext=labels, tickangle=-90, showgrid=False, title_text="token"
    )
    return figure.update_yaxes(
        title_text=f"saliency, {label(method)} ({label(unit)})",
        zeroline=True,
        zerolinecolor=MUTED,
    )


def saliency_text(
    values: Float[np.ndarray, " token"],
    tokens: Sequence[str],
    *,
    unit: str,
    spans: Mapping[str, Span],
    start: int = 0,
) -> str:
    """The prompt from ``start`` on as HTML, a coloured ground a token."""
    values = values[start:]
    limit = float(np.abs(values).max(initial=0.0)) or 1.0
    marked = {place for begin, end in spans.values() for place in range(begin, end)}
    scale = [list(stop) for stop in DIVERGING]
    # A scale's dark ends would hide the words: at most 0.7 of the way there.
    grounds = sample_colorscale(scale, (0.5 + 0.35 * values / limit).tolist())
    parts = []
    for place, (value, ground) in enumerate(zip(values, grounds, strict=True), start=start):
        text = html.escape(tokens[place])
        text = f"<b>{text}</b>" if place in marked else text
        sign = ""
        if abs(value) >= _STRONG * limit:
            sign = f"<sup>{'+' if value > 0 else '−'}</sup>"
        parts.append(
            f'<span style="background:{ground};color:{INK}" title="{value:.3g} '
            f'{html.escape(unit)}">{text}{sign}</span>'
        )
    return f'<p style="white-space:pre-wrap;line-height:1.9">{"".join(parts)}</p>'
