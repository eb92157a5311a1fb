"""Where pieces of a text are in its tokens, by the tokenizer's character offsets.

A piece is found on the whole text, never by tokenizing it alone: its tokens depend on what stands
around it.
"""

from collections.abc import Sequence
from typing import Any

from interp.errors import UserError


def tokenize_with_offsets(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> Any:
    """The encoding of a text, with ``input_ids`` and ``offset_mapping``; see `check_offsets`."""
    check_offsets(tokenizer)
    return tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)


def check_offsets(tokenizer: Any) -> None:
    """Raise UserError if the tokenizer is a slow one, which has no offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "this model's tokenizer gives no character offsets, so no span can be found: "
            "use a model that has a fast tokenizer (tokenizer.json)"
        )


def token_span(
    offsets: Sequence[tuple[int, int]], text: str, start: int, end: int, what: str = "span"
) -> tuple[int, int]:
    """The tokens [first, last + 1) that hold characters [start, end) of the text.

    Whitespace at a token's edge does not count, so that a token for " of " is not in the span of
    the name that follows it. Raises UserError, which calls the piece ``what``, if no token holds
    any of it.
    """
    inside = []
    for index, (left, right) in enumerate(offsets):
        piece = text[left:right]
        left += len(piece) - len(piece.lstrip())
        right -= len(piece) - len(piece.rstrip())
        if left < end and right > start and left < right:
            inside.append(index)
    if not inside:
        raise UserError(f"the {what} {text[start:end]!r} is not found in the prompt's tokens")
    return inside[0], inside[-1] + 1


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at the beginning."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
