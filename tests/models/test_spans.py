"""Pieces of a text in its tokens, for any way that a tokenizer may cut it."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.models.spans import (
    check_offsets,
    last_mention,
    prompt_ids,
    shared_length,
    token_span,
    tokenize_with_offsets,
)


@given(st.text(alphabet="ab漢é🌋 \t\n", min_size=1, max_size=12), st.data())
def test_a_token_span_is_the_smallest_that_holds_the_characters(
    text: str, data: st.DataObject
) -> None:
    """For any cut of any text into tokens."""
    cuts = data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=10))
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    offsets = list(itertools.pairwise(edges))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    wanted = {i for i in range(start, end) if not text[i].isspace()}
    if not wanted:
        return
    first, last = token_span(offsets, text, (start, end))
    held = set(range(offsets[first][0], offsets[last - 1][1]))
    assert wanted <= held
    for edge in (first, last - 1):
        assert wanted & set(range(*offsets[edge]))


def test_a_space_at_a_tokens_edge_is_not_in_the_next_names_span() -> None:
    text = "of Peru now"
    assert token_span([(0, 3), (3, 7), (7, 11)], text, (3, 7)) == (1, 2)
    assert token_span([(0, 2), (2, 7), (7, 11)], text, (3, 7)) == (1, 2)
    assert token_span([(0, 2), (2, 5), (5, 8), (8, 11)], text, (3, 7)) == (1, 3)
    # Characters that end with a space do not take the next word's token along.
    assert token_span([(0, 2), (2, 7), (7, 11)], text, (3, 8)) == (1, 2)
    with pytest.raises(UserError, match="the object 'Peru' is not found in the prompt's tokens"):
        token_span([(0, 2), (7, 11)], text, (3, 7), what="object")


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_shared_length(a: list[int], b: list[int]) -> None:
    shared = shared_length(a, b)
    assert a[:shared] == b[:shared]
    assert shared == min(len(a), len(b)) or a[shared] != b[shared]


def test_offsets_are_of_the_text_itself(plain_tokenizer: object) -> None:
    text = "Why is Paris the capital of Germany?"
    encoding = tokenize_with_offsets(plain_tokenizer, text)
    pieces = [text[left:right] for left, right in encoding["offset_mapping"]]
    assert "".join(pieces) == text
    first, last = token_span(encoding["offset_mapping"], text, (7, 12))
    assert "".join(pieces[first:last]).strip() == "Paris"


def test_a_slow_tokenizer_is_told() -> None:
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(UserError, match="no character offsets"):
        check_offsets(slow)
    with pytest.raises(UserError, match="no character offsets"):
        tokenize_with_offsets(slow, "text")


def framed(plain_tokenizer: Any, frame: str) -> Any:
    """The tokenizer, which puts its first two tokens around every text."""
    backend = Tokenizer.from_str(plain_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("<|start|>", 0), ("<|end|>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>"
    )


@pytest.mark.parametrize(
    ("frame", "front"),
    [
        ("$A", []),
        ("<|start|> $A", [0]),
        ("$A <|end|>", []),
        ("<|start|> $A <|end|>", [0]),
        ("<|start|> $A <|end|> <|end|>", [0]),
        ("<|end|> $A", [1]),
        ("<|end|> $A <|end|>", [1]),
    ],
)
@pytest.mark.parametrize("text", ["Why?", "Why?<|end|>", "<|end|>", "Why? "])
def test_a_prompt_has_what_stands_in_front_and_no_end(
    frame: str, front: list[int], text: str, plain_tokenizer: Any
) -> None:
    bare = plain_tokenizer(text)["input_ids"]  # with the end token that the text itself holds
    tokenizer = framed(plain_tokenizer, frame)
    encoding = tokenize_with_offsets(tokenizer, text)
    assert encoding["input_ids"] == prompt_ids(tokenizer, text) == front + bare
    assert encoding["offset_mapping"][-1][1] == len(text)
    assert len(encoding["offset_mapping"]) == len(front + bare)
    assert prompt_ids(tokenizer, text, add_special_tokens=False) == bare


class Slow:
    """A tokenizer without offsets: characters, between 0 and 1."""

    is_fast = False

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        ids = [ord(one) for one in text]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}


def test_a_slow_tokenizers_end_is_left_out_too() -> None:
    assert prompt_ids(Slow(), "abc") == [0, 97, 98, 99]
    assert prompt_ids(Slow(), "abc", add_special_tokens=False) == [97, 98, 99]


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("Is Niger, not Nigeria, dry?", "Niger", (3, 8)),
        ("Niger or Niger?", "Niger", (9, 14)),
        ("Why Nigeria?", "Niger", (4, 9)),  # nowhere as a whole word
        ("Is it C++?", "C++", (6, 9)),
        ("Abidjan, Co\u0302te d'Ivoire", "C\xf4te d'Ivoire", (9, 23)),
        ("Abidjan, C\xf4te d'Ivoire", "Co\u0302te d'Ivoire", (9, 22)),
        ("Why Nigeria?", "niger", None),
        ("Why Nigeria?", "", None),
    ],
)
def test_the_last_mention(text: str, words: str, found: tuple[int, int] | None) -> None:
    assert last_mention(text, words) == found
