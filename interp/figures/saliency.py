"""Token saliency to look at: bars over the tokens, and the text with a coloured ground.

Orange (positive) speaks for the answer asked about, purple (negative) against it. In print the
sign is told by the bar's side of zero, and in the text by a raised + or −; marked spans are bold.
"""

import html
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from interp.figures.look import (
    DIVERGING,
    INK,
    LOOK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    STRIPES,
    label,
)
from interp.figures.token_axis import check_start, mark_spans, names, ticks, with_earlier

if TYPE_CHECKING:
    from interp.inspection.saliency import TokenSaliency

_STRONG = 1 / 3
"""Tokens from this share of the largest on get a raised sign."""


def saliency_figure(saliency: "TokenSaliency", *, start: int = 0) -> go.Figure:
    """A bar for each token from ``start`` on, and one for the sum of those before.

    Raises UserError for a start that is no token.
    """
    tokens = saliency.tokens
    check_start(start, len(tokens))
    values = saliency.values.double().numpy()
    labels = with_earlier(ticks(tokens, saliency.spans, start), start, "({} before)")
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
            hovertemplate=f"<b>%{{customdata}}</b><br>%{{y:.4g}} {label(saliency.unit)}"
            "<extra></extra>",
        )
    )
    for name, middle in mark_spans(figure, saliency.spans, start):
        figure.add_annotation(
            x=middle, y=1, yref="paper", yanchor="bottom", text=label(name),
            showarrow=False, font={"size": 12},
        )  # fmt: skip
    figure.update_layout(
        template=LOOK,
        height=380,
        width=max(420, 24 * len(places) + 110),
        margin={"b": 110, "t": 70},
        bargap=0.2,
        title={"text": label(f"{saliency.metric} = {saliency.value:.3g} {saliency.unit}")},
    )
    figure.update_xaxes(
        tickvals=places, ticktext=labels, tickangle=-90, showgrid=False, title_text="token"
    )
    return figure.update_yaxes(
        title_text=f"saliency, {label(saliency.method)} ({label(saliency.unit)})",
        zeroline=True,
        zerolinecolor=MUTED,
    )


def saliency_text(saliency: "TokenSaliency", *, start: int | None = None) -> str:
    """The prompt from ``start`` (by default the question) on as HTML, a coloured ground a token."""
    start = saliency.start if start is None else start
    values = saliency.values.double().numpy()[start:]
    limit = float(np.abs(values).max(initial=0.0)) or 1.0
    marked = {place for begin, end in saliency.spans.values() for place in range(begin, end)}
    scale = [list(stop) for stop in DIVERGING]
    # A scale's dark ends would hide the words: at most 0.7 of the way there.
    grounds = sample_colorscale(scale, (0.5 + 0.35 * values / limit).tolist())
    parts = []
    for place, (value, ground) in enumerate(zip(values, grounds, strict=True), start=start):
        text = html.escape(saliency.tokens[place])
        text = f"<b>{text}</b>" if place in marked else text
        sign = ""
        if abs(value) >= _STRONG * limit:
            sign = f"<sup>{'+' if value > 0 else '−'}</sup>"
        parts.append(
            f'<span style="background:{ground};color:{INK}" title="{value:.3g} '
            f'{html.escape(saliency.unit)}">{text}{sign}</span>'
        )
    return f'<p style="white-space:pre-wrap;line-height:1.9">{"".join(parts)}</p>'
