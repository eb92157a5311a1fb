"""An axis of tokens: a tick for each token from ``start`` on, and one for all earlier tokens.

Tokens of a span are bold, and two dashed lines enclose the span.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from interp.errors import UserError
from interp.figures.theme import INK, token_label

Span = tuple[int, int]
"""A range of tokens, [start, end)."""


def check_start(start: int, n_tokens: int) -> None:
    """Raise UserError if ``start`` is not a token of the prompt."""
    if not 0 <= start < n_tokens:
        raise UserError(f"start is {start}, but the prompt has tokens 0 to {n_tokens - 1}")


def ticks(tokens: Sequence[str], spans: Mapping[str, Span], start: int) -> list[str]:
    """Labels of the tokens from ``start`` on."""
    marked = {position for begin, end in spans.values() for position in range(begin, end)}
    names = enumerate(map(token_label, tokens[start:]), start=start)
    return [f"<b>{name}</b>" if position in marked else name for position, name in names]


def names(tokens: Sequence[str], start: int) -> list[str]:
    """Text and position of the tokens from ``start`` on, for hovering."""
    return [f"{token_label(text)} ({i})" for i, text in enumerate(tokens[start:], start)]


def with_earlier(shown: Sequence[str], start: int, text: str) -> list[str]:
    """The labels, after one for the ``start`` earlier tokens if there are any."""
    return [*([text.format(start)] if start else []), *shown]


def mark_spans(
    figure: go.Figure, spans: Mapping[str, Span], start: int, **subplot: Any
) -> Iterator[tuple[str, float]]:
    """Draw the edges of the visible spans; yields the name and the middle of each."""
    for name, (begin, end) in spans.items():
        if begin < start:
            continue
        for edge in (begin - start - 0.5, end - start - 0.5):
            figure.add_vline(x=edge, line={"color": INK, "dash": "dash", "width": 1.2}, **subplot)
        yield name, (begin + end - 1) / 2 - start
