"""An axis of tokens: one place a token from ``start`` on, and one for all that come before.

Tokens of a span are bold, and the span stands between two dashed lines.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from interp.errors import UserError
from interp.figures.theme import INK, token_label

Span = tuple[int, int]
"""The tokens [start, end) of a piece of the prompt."""


def check_start(start: int, n_tokens: int) -> None:
    """Raise UserError for a start that is no token."""
    if not 0 <= start < n_tokens:
        raise UserError(
            f"the prompt has tokens 0 to {n_tokens - 1}: it cannot be shown from {start} on"
        )


def ticks(tokens: Sequence[str], spans: Mapping[str, Span], start: int) -> list[str]:
    """Labels of the tokens from ``start`` on."""
    marked = {place for begin, end in spans.values() for place in range(begin, end)}
    names = enumerate(map(token_label, tokens[start:]), start=start)
    return [f"<b>{name}</b>" if place in marked else name for place, name in names]


def names(tokens: Sequence[str], start: int) -> list[str]:
    """The same tokens in words, for hovering: text and position."""
    return [f"{token_label(text)} ({place})" for place, text in enumerate(tokens[start:], start)]


def with_earlier(shown: Sequence[str], start: int, text: str) -> list[str]:
    """Labels with one more in front for the ``start`` earlier tokens, if there are any."""
    return [*([text.format(start)] if start else []), *shown]


def mark_spans(
    figure: go.Figure, spans: Mapping[str, Span], start: int, **subplot: Any
) -> Iterator[tuple[str, float]]:
    """Draw the edges of the spans that are shown; gives each one's name and middle on the axis."""
    for name, (begin, end) in spans.items():
        if begin < start:
            continue
        for edge in (begin - start - 0.5, end - start - 0.5):
            figure.add_vline(x=edge, line={"color": INK, "dash": "dash", "width": 1.2}, **subplot)
        yield name, (begin + end - 1) / 2 - start
