"""Words of a question, and the tokens that they consist of.

A word is a run of letters, digits and marks, with the hyphens, apostrophes and full stops inside
it: "Côte d'Ivoire" is two words, and "St. Louis" is two. Every Chinese or Japanese character is a
word, because no spaces separate them.
"""

import re
import unicodedata
from collections.abc import Sequence

from interp.forward.batch import Span

_INNER = "-'’.‐‑"


def word_spans(text: str) -> tuple[Span, ...]:
    """The characters [start, end) of each word of the text, in order."""
    spans: list[Span] = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        while start < end:
            while start < end and not _is_letter(text[start]):
                start += 1
            stop = start
            while stop < end and (_is_letter(text[stop]) or _joins(text, stop, end)):
                if unicodedata.east_asian_width(text[stop]) == "W":  # a word by itself
                    stop += stop == start
                    break
                stop += 1
            if stop > start:
                spans.append((start, stop))
            start = stop
    return tuple(spans)


def words_of_tokens(
    words: Sequence[Span], offsets: Sequence[tuple[int, int]], text: str
) -> tuple[int | None, ...]:
    """The last word that each token's characters touch; None for one that touches no word.

    ``offsets`` are characters of ``text``; space at a token's edge does not count.
    """
    found: list[int | None] = []
    for left, right in offsets:
        piece = text[max(left, 0) : right]
        begin = right - len(piece.lstrip())
        touched = [
            index for index, (start, end) in enumerate(words) if begin < end and right > start
        ]
        found.append(touched[-1] if touched and piece.strip() else None)
    return tuple(found)


def _is_letter(character: str) -> bool:
    """Letters, digits, and the marks that some scripts put on them."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _joins(text: str, index: int, end: int) -> bool:
    """Whether a hyphen, apostrophe or full stop stands inside a word."""
    return text[index] in _INNER and index + 1 < end and _is_letter(text[index + 1])
