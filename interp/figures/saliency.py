"""Figures of token saliency: bars over the tokens, and the text with background colours.

Orange (positive) supports the answer asked about, purple (negative) opposes it. Without colours the
bar's side of zero shows the sign, and in the text a superscript + or −; marked spans are bold.
"""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale

from interp.figures.theme import DIVERGING, INK, ZERO_LINE, label, signed_bars, themed
from interp.figures.token_axis import Span, check_start, mark_spans, names, ticks, with_earlier

_STRONG = 1 / 3
"""Tokens with at least this share of the largest saliency get a superscript sign."""


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
        metric, value: the quantity that saliency explains, and its value on this prompt.
        method: how the saliency was computed.
        spans: token ranges to mark, by name.

    Raises:
        UserError: ``start`` is not a token.
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
            marker=signed_bars(heights),
            hovertemplate=f"<b>%{{customdata}}</b><br>%{{y:.4g}} {label(unit)}<extra></extra>",
        )
    )
    for name, middle in mark_spans(figure, spans, start):
        figure.add_annotation(
            **{"x": middle, "y": 1, "yref": "paper", "yanchor": "bottom"},
            **{"text": label(name), "showarrow": False, "font": {"size": 12}},
        )
    themed(
        figure,
        height=380,
        width=max(420, 24 * len(places) + 110),
        margin={"b": 110, "t": 70},
        bargap=0.2,
        title={"text": label(f"{metric} = {value:.3g} {unit}")},
    )
    figure.update_xaxes(
        tickvals=places, ticktext=labels, tickangle=-90, showgrid=False, title_text="token"
    )
    return figure.update_yaxes(title_text=f"saliency, {label(method)} ({label(unit)})", **ZERO_LINE)


def saliency_text(
    values: Float[np.ndarray, " token"],
    tokens: Sequence[str],
    *,
    unit: str,
    spans: Mapping[str, Span],
    start: int = 0,
) -> str:
    """The prompt from ``start`` on as HTML, with a background colour for each token."""
    values = values[start:]
    limit = float(np.abs(values).max(initial=0.0)) or 1.0
    marked = {position for begin, end in spans.values() for position in range(begin, end)}
    scale = [list(stop) for stop in DIVERGING]
    # The dark ends of the scale would hide the words: use its middle 70 %.
    grounds = sample_colorscale(scale, (0.5 + 0.35 * values / limit).tolist())
    parts = []
    for position, (value, ground) in enumerate(zip(values, grounds, strict=True), start=start):
        text = html.escape(tokens[position])
        text = f"<b>{text}</b>" if position in marked else text
        sign = ""
        if abs(value) >= _STRONG * limit:
            sign = f"<sup>{'+' if value > 0 else '−'}</sup>"
        parts.append(
            f'<span style="background:{ground};color:{INK}" title="{value:.3g} '
            f'{html.escape(unit)}">{text}{sign}</span>'
        )
    return f'<p style="white-space:pre-wrap;line-height:1.9">{"".join(parts)}</p>'
