"""Token saliency to look at: bars over the tokens, and the text with a coloured ground.

Orange (positive) speaks for the answer asked about, purple (negative) against it. In print the
sign is told by the bar's side of zero, and in the text by a raised + or −; marked spans are bold.
"""

import html
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from interp.errors import UserError
from interp.report.look import (
    DIVERGING,
    INK,
    LOOK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    STRIPES,
    label,
    token_label,
)

if TYPE_CHECKING:
    from interp.evaluation.saliency import TokenSaliency

_STRONG = 1 / 3
"""Tokens from this share of the largest on get a raised sign."""


def saliency_figure(saliency: "TokenSaliency", *, start: int = 0) -> go.Figure:
    """A bar for each token from ``start`` on, and one for the sum of those before.

    Raises UserError for a start that is no token.
    """
    n = len(saliency.tokens)
    if not 0 <= start < n:
        raise UserError(f"the prompt has tokens 0 to {n - 1}: it cannot be shown from {start} on")
    values = saliency.values.double().numpy()
    shown = list(range(start, n))
    marked = {place for begin, end in saliency.spans.values() for place in range(begin, end)}
    names = [token_label(saliency.tokens[place]) for place in shown]
    ticks = [
        f"<b>{name}</b>" if place in marked else name
        for place, name in zip(shown, names, strict=True)
    ]
    heights, hover = (
        values[start:].tolist(),
        [f"{name} ({place})" for place, name in zip(shown, names, strict=True)],
    )
    places = list(range(len(shown)))
    if start:
        ticks, hover = [f"({start} before)", *ticks], [f"the {start} tokens before", *hover]
        heights, places = [float(values[:start].sum()), *heights], [-1, *places]
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
    for name, (begin, end) in saliency.spans.items():
        if begin >= start:
            _mark(figure, name, begin - start, end - start)
    figure.update_layout(
        template=LOOK,
        height=380,
        width=max(420, 24 * len(places) + 110),
        margin={"b": 110, "t": 70},
        bargap=0.2,
        title={"text": label(f"{saliency.metric} = {saliency.value:.3g} {saliency.unit}")},
    )
    figure.update_xaxes(
        tickvals=places, ticktext=ticks, tickangle=-90, showgrid=False, title_text="token"
    )
    return figure.update_yaxes(
        title_text=f"saliency, {label(saliency.method)} ({label(saliency.unit)})",
        zeroline=True,
        zerolinecolor=MUTED,
    )


def _mark(figure: go.Figure, name: str, begin: int, end: int) -> None:
    for edge in (begin - 0.5, end - 0.5):
        figure.add_vline(x=edge, line={"color": INK, "dash": "dash", "width": 1.2})
    figure.add_annotation(
        x=(begin + end - 1) / 2, y=1, yref="paper", yanchor="bottom", text=label(name),
        showarrow=False, font={"size": 12},
    )  # fmt: skip


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
