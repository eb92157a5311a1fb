"""Left-padded batches: any lists of tokens, either side of padding, and their spans."""

from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.forward.batch import by_length, in_batches
from interp.patching import TokenBatch, first_difference

prompts = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5)


@given(prompts)
def test_lists_come_back_from_the_batch(lists: list[list[int]]) -> None:
    batch = TokenBatch.from_lists(lists, pad=7)
    for row, tokens in enumerate(lists):
        assert batch.tokens[row][batch.mask[row]].tolist() == tokens
        assert batch.tokens[row][~batch.mask[row]].tolist() == [7] * (batch.width - len(tokens))
        assert int(batch.offsets[row]) == batch.width - len(tokens)
        assert batch.positions[row][batch.mask[row]].tolist() == list(range(len(tokens)))
    assert bool(batch.mask[:, -1].all())


@given(prompts, st.booleans(), st.integers(0, 3))
def test_padding_on_either_side_makes_the_same_batch(
    lists: list[list[int]], right: bool, extra: int
) -> None:
    width = max(map(len, lists)) + extra
    tokens = torch.full((len(lists), width), 55)
    mask = torch.zeros(len(lists), width, dtype=torch.bool)
    for row, one in enumerate(lists):
        place = slice(0, len(one)) if right else slice(width - len(one), width)
        tokens[row, place] = torch.tensor(one)
        mask[row, place] = True
    batch, expected = TokenBatch.from_padded(tokens, mask), TokenBatch.from_lists(lists)
    assert torch.equal(batch.tokens, expected.tokens)
    assert torch.equal(batch.mask, expected.mask)


@given(prompts, st.data())
def test_a_span_marks_its_own_tokens(lists: list[list[int]], data: st.DataObject) -> None:
    spans = []
    for tokens in lists:
        start = data.draw(st.integers(0, len(tokens) - 1))
        spans.append((start, data.draw(st.integers(start + 1, len(tokens)))))
    batch = TokenBatch.from_lists(lists)
    at = batch.span_mask(spans)
    for row, (start, end) in enumerate(spans):
        assert batch.tokens[row][at[row]].tolist() == lists[row][start:end]


@given(prompts, st.data())
def test_taking_prompts_cuts_the_width_and_keeps_the_tokens(
    lists: list[list[int]], data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=4))
    taken = TokenBatch.from_lists(lists).take(some)
    expected = TokenBatch.from_lists([lists[index] for index in some])
    assert torch.equal(taken.tokens, expected.tokens)
    assert torch.equal(taken.mask, expected.mask)


def test_the_first_difference_ignores_padding() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True]])
    a = TokenBatch(torch.tensor([[1, 2, 3], [4, 5, 6]]), mask)
    b = TokenBatch(torch.tensor([[9, 2, 8], [4, 5, 6]]), mask)
    assert first_difference(a, b).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenBatch.from_lists([]), "empty prompt"),
        (lambda: TokenBatch.from_lists([[1], []]), "empty prompt"),
        (
            lambda: TokenBatch(torch.ones(1, 2).long(), torch.tensor([[True, False]])),
            "left-padded",
        ),
        (lambda: TokenBatch(torch.ones(1, 2).long(), torch.zeros(1, 2).bool()), "at least one"),
        (
            lambda: TokenBatch.from_padded(torch.ones(1, 2).long(), torch.ones(1, 3)),
            "the mask has shape",
        ),
        (lambda: TokenBatch.from_lists([[1, 2]]).span_mask([]), "0 spans for 1 prompts"),
        (lambda: TokenBatch.from_lists([[1, 2], [3]]).span_mask([(0, 1), (0, 2)]), "prompt 1"),
        (lambda: TokenBatch.from_lists([[1, 2]]).span_mask([(1, 1)]), r"\[1, 1\) of prompt 0"),
        (
            lambda: first_difference(
                TokenBatch.from_lists([[1, 2]]), TokenBatch.from_lists([[1, 2, 3]])
            ),
            "differ in length",
        ),
    ],
)
def test_what_is_no_batch_is_told(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=message):
        make()


def test_lengths_are_cut_into_batches_that_fit() -> None:
    lengths = [5, 1, 9, 3, 3]
    assert by_length(lengths, 9) == [[1, 3, 4], [0], [2]]
    assert by_length([50], 9) == [[0]]
    assert by_length([], 9) == []


def test_the_longest_prompts_come_first_where_asked() -> None:
    """The first prompt of a batch is its widest: nine tokens hold three of three, not of five."""
    lengths = [5, 1, 9, 3, 3, 2]
    assert by_length(lengths, 9, longest_first=True) == [[2], [0], [3, 4, 5], [1]]
    assert by_length(lengths, 10, longest_first=True) == [[2], [0, 3], [4, 5, 1]]
    assert by_length([50, 60], 9, longest_first=True) == [[1], [0]]


@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 40), st.booleans())
def test_every_prompt_is_in_one_batch_within_the_limit(
    lengths: list[int], batch_tokens: int, longest_first: bool
) -> None:
    batches = by_length(lengths, batch_tokens, longest_first=longest_first)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        size = len(batch) * max(lengths[index] for index in batch)
        assert size <= batch_tokens or len(batch) == 1


def test_items_in_batches_keep_their_order() -> None:
    assert in_batches(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert in_batches("abc", 0) == [["a"], ["b"], ["c"]]
    assert in_batches([], 3) == []


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_what_a_tokenizer_gives_is_taken_without_its_padding(
    side: str, tensors: str | None, chat_tokenizer: Any
) -> None:
    texts = ["Why is Paris large?", "Why?"]
    lists = [chat_tokenizer(text)["input_ids"] for text in texts]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chat_tokenizer, "padding_side", side)
        encoding = chat_tokenizer(texts, padding=True, return_tensors=tensors)
    batch, expected = TokenBatch.of(encoding), TokenBatch.from_lists(lists)
    assert torch.equal(batch.mask, expected.mask)
    assert torch.equal(batch.tokens[batch.mask], expected.tokens[expected.mask])
    assert (batch.shortest, batch.longest) == tuple(sorted(map(len, lists)))
    with pytest.raises(UserError, match="encode a list of texts"):
        TokenBatch.of(chat_tokenizer("Why?"))


def test_a_column_of_lists_is_taken() -> None:
    column = pd.Series([[1, 2], [3]], index=[4, 7])
    assert TokenBatch.of(column).tokens.tolist() == [[1, 2], [0, 3]]
