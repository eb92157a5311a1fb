"""Labelled texts: prefixes, units, frequent ids, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.experts.routing.corpus import check_enough, common_prefix, corpus_of
from interp.experts.routing.token_class import CLASSES, token_class, token_texts
from interp.moelora.data.encoding import encode_example
from interp.moelora.data.examples import Example


def test_examples_are_prompt_and_response_of_their_task_and_subject(chat_tokenizer: Any) -> None:
    examples = [
        Example(task="sums", prompt="What is 1 + 1?", answer="2", subject="one"),
        Example(task="sums", prompt="What is 1 + 2?", answer="3", subject="one"),
        Example(task="facts", prompt="Which city?", answer="Paris", subject="one"),
    ]
    corpus = corpus_of(examples, chat_tokenizer)
    assert [one.tokens for one in corpus.texts] == [
        encode_example(chat_tokenizer, one).tokens for one in examples
    ]
    assert corpus.tasks == ("sums", "facts")
    assert corpus.units == {"sums": 1, "facts": 1}
    # The template's first lines are the same in all.
    start = chat_tokenizer("<|start|>system\nYou answer questions.", add_special_tokens=False)
    assert corpus.prefix >= len(start["input_ids"])
    assert sum(corpus.tokens.values()) == sum(
        len(one.tokens) - corpus.prefix for one in corpus.texts
    )


def test_texts_and_token_ids(plain_tokenizer: Any) -> None:
    corpus = corpus_of({"a": ["Paris is"], "b": [[7, 8, 9], [8, 9]]}, plain_tokenizer)
    assert corpus.texts[0].tokens == tuple(plain_tokenizer("Paris is")["input_ids"])
    assert corpus.texts[1].tokens == (7, 8, 9)
    assert (corpus.prefix, corpus.units) == (0, {"a": 1, "b": 2})
    assert {8, 9} <= set(corpus.frequent_ids(10))
    assert 7 not in corpus.frequent_ids(10)
    assert len(corpus.frequent_ids(1)) == 1


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=2, max_size=5))
def test_common_prefix(rows: list[list[int]]) -> None:
    found = common_prefix(rows)
    assert all(row[:found] == rows[0][:found] for row in rows)
    longer = min(map(len, rows)) > found + 1
    assert not longer or len({row[found] for row in rows}) > 1


def test_refusals(plain_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="not labelled with tasks"):
        corpus_of(["a text", "another"], plain_tokenizer)
    with pytest.raises(UserError, match="no texts"):
        corpus_of({}, plain_tokenizer)
    with pytest.raises(UserError, match="no tokens of its own"):
        corpus_of({"a": [[]]}, plain_tokenizer)
    small = corpus_of({"a": [[1, 2], [3, 4]], "b": [[5, 6]]}, plain_tokenizer)
    with pytest.raises(UserError, match=r"'b' has 2 tokens in 1 independent texts: at least 3"):
        check_enough(small, tokens=3, units=1)
    check_enough(small, tokens=2, units=1)
    with pytest.raises(UserError, match="all texts are of one task"):
        check_enough(corpus_of({"a": [[1, 2]]}, plain_tokenizer), tokens=1, units=1)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((" 12", "numeric"), ("3.5", "numeric"), ("1,000", "numeric"), ("5%", "numeric")),
        *(("+", "operator"), (" =", "operator"), ("≤", "operator"), ("**", "operator")),
        *((" The", "function word"), ("how", "function word"), (" of", "function word")),
        *((" Paris", "name"), ("Samir", "name"), (" paris", "other"), (".", "other")),
        *((" ", "other"), ("", "other"), ("x2", "other"), (",", "other"), ("B", "other")),
    ],
)
def test_classes(text: str, name: str) -> None:
    assert CLASSES[token_class(text)] == name


def test_token_texts(plain_tokenizer: Any) -> None:
    ids = plain_tokenizer("Paris is 7")["input_ids"]
    assert "".join(token_texts(plain_tokenizer, ids)) == "Paris is 7"


@pytest.mark.parametrize("texts", ["one text", 5, None, [None], [True], [[1, True]], [["a"]], {}])
def test_what_is_no_list_of_texts_is_told(texts: Any, plain_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"a list of texts|be text or token ids|no texts"):
        corpus_of({"a": texts}, plain_tokenizer)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": ["Paris is"], "b": []}, "task 'b' has no texts"),
        ({"all": ["Paris is"]}, "a task cannot be called 'all'"),
        ({"a": [[7, -1]]}, "must be text or token ids"),
    ],
)
def test_what_no_table_could_hold_is_refused(plain_tokenizer: Any, data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus_of(data, plain_tokenizer)
