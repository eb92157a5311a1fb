"""A prompt's tokens, and the spans of pieces of its text in them.

A prompt is the text before an answer, so it never ends in a token that the tokenizer puts behind
every text, such as the end token of ``<s> $A </s>``. Tokens that it puts in front are kept.

A piece is found in the whole text, by the tokenizer's character offsets, never by tokenizing it
alone: its tokens depend on the text around it.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any, TypedDict

from interp.errors import UserError
from interp.whole_words import mentions


class PromptTokens(TypedDict):
    """A prompt's token ids, and of each the characters [start, end) of the text."""

    input_ids: list[int]
    offset_mapping: list[tuple[int, int]]


def prompt_ids(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """The token ids of a prompt, by any tokenizer."""
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenize_with_offsets(tokenizer, text, add_special_tokens=add_special_tokens)
        return encoding["input_ids"]
    ids = list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
    if not add_special_tokens:
        return ids
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for end in range(len(plain), len(ids) + 1):
        if plain and ids[end - len(plain) : end] == plain:
            return ids[:end]
    return ids  # the text's own tokens depend on what is put around them


def tokenize_with_offsets(
    tokenizer: Any, text: str, *, add_special_tokens: bool = True
) -> PromptTokens:
    """The token ids of a prompt with their offsets.

    Raises:
        UserError: the tokenizer is a slow one, which has no offsets.
    """
    check_offsets(tokenizer)
    encoding = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    # The mask marks what was put around the text, not a special token that the text holds.
    added = encoding["special_tokens_mask"]
    end = len(ids)
    while not all(added) and added[end - 1]:
        end -= 1
    return {"input_ids": list(ids[:end]), "offset_mapping": list(offsets[:end])}


def check_offsets(tokenizer: Any) -> None:
    """Raise UserError if the tokenizer is a slow one, which has no offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "this model's tokenizer gives no character offsets, so no span can be found: "
            "use a model that has a fast tokenizer (tokenizer.json)"
        )


def token_span(
    offsets: Sequence[tuple[int, int]], text: str, span: tuple[int, int], *, what: str = "span"
) -> tuple[int, int]:
    """The tokens [first, last + 1) that hold the characters of a span [start, end) of the text.

    Whitespace at a token's edge does not count, so that a token for " of " is not in the span of
    the name that follows it.

    Args:
        what: names the span in a message.

    Raises:
        UserError: no token holds any of it.
    """
    (start, end), inside = span, []
    for index, (left, right) in enumerate(offsets):
        piece = text[left:right]
        left += len(piece) - len(piece.lstrip())
        right -= len(piece) - len(piece.rstrip())
        if left < end and right > start and left < right:
            inside.append(index)
    if not inside:
        raise UserError(f"the {what} {text[start:end]!r} is not found in the prompt's tokens")
    return inside[0], inside[-1] + 1


def last_mention(text: str, words: str) -> tuple[int, int] | None:
    """The characters [start, end) of the last mention of some words, if there is one.

    As whole words where they are there so: "Niger" is not in "Nigeria". Composed and decomposed
    letters (Unicode's NFC and NFD) are the same.
    """
    if found := mentions(text, words, exact=True):
        return found[-1]
    forms = {words, *(unicodedata.normalize(form, words) for form in ("NFC", "NFD"))} - {""}
    starts = [(text.rfind(form), len(form)) for form in forms]
    return max(((at, at + size) for at, size in starts if at >= 0), default=None)


def shared_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many tokens, or characters, two sequences share at the beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(a), len(b)))
