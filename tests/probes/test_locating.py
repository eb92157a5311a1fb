"""From tokens to words: hand-made scores, odd texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from probes.detector.questions import tokenize_question
from probes.detector.span import false_words
from probes.detector.words import word_spans, words_of_tokens


def found(tokenizer, text: str, falsest: str, likely: dict[str, float]) -> str | None:
    """The words found when the falsity probe is highest in one word, the other as given."""
    asked = tokenize_question(tokenizer, text)
    falsity, mention = np.full(len(asked.offsets), -5.0), np.full(len(asked.offsets), -5.0)
    for token, word in enumerate(asked.word_of):
        if word is not None:
            name = text[slice(*asked.words[word])]
            falsity[token] = 3.0 if name == falsest else falsity[token]
            mention[token] = likely.get(name, -5.0)
    span = false_words(asked, falsity, mention)
    return None if span is None else text[slice(*span)]


def test_words_by_hand(chat_tokenizer):
    text = "Why is Paris the capital of Germany?"
    assert found(chat_tokenizer, text, "Germany", {"Germany": 2.0}) == "Germany"
    # The object comes first, and the premise is false from the subject on.
    first = "Why did Apple create the program Windows in 1985?"
    assert found(chat_tokenizer, first, "Windows", {"Apple": 3.0, "Windows": 1.0}) == "Apple"
    # A word behind the falsest one cannot be the object.
    assert found(chat_tokenizer, text, "Paris", {"Paris": 0.0, "Germany": 9.0}) == "Paris"


def test_several_words(chat_tokenizer):
    text = "Why is Paris the capital of the United Arab Emirates, really?"
    # One word is likely, its neighbours have capitals too.
    assert found(chat_tokenizer, text, "Emirates", {"Emirates": 2.0}) == "United Arab Emirates"
    # Small letters belong to it where the probe says so.
    small = "Why is the us dollar the money of Japan?"
    likely = {"dollar": 2.0, "us": 0.0}
    assert found(chat_tokenizer, small, "Japan", likely) == "us dollar"
    # A mark between two names parts them.
    marks = "Why is Paris, Germany, so old?"
    assert found(chat_tokenizer, marks, "Germany", {"Germany": 2.0}) == "Germany"


def test_no_words(chat_tokenizer):
    assert found(chat_tokenizer, "?!", "", {}) is None


def test_words():
    def cut(text: str) -> list[str]:
        return [text[slice(*span)] for span in word_spans(text)]

    assert cut("Côte d'Ivoire, U.S. x-ray (a)…") == ["Côte", "d'Ivoire", "U.S", "x-ray", "a"]
    assert cut("北京 Tokyo市") == ["北", "京", "Tokyo", "市"]
    assert cut("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert cut(" ?? ") == []


@given(st.text(max_size=60))
def test_words_hold_letters_and_no_space(text):
    spans = word_spans(text)
    assert spans == tuple(sorted(set(spans)))
    for index, (start, end) in enumerate(spans):
        after = spans[index + 1][0] if index + 1 < len(spans) else len(text)
        assert 0 <= start < end <= after
        assert not any(one.isspace() for one in text[start:end])
        assert any(one.isalnum() or not one.isascii() for one in text[start:end])


def test_tokens_of_words():
    text = "ab cd-e, f"
    words = word_spans(text)
    offsets = [(0, 2), (2, 5), (5, 7), (7, 8), (8, 9), (8, 10)]
    assert words_of_tokens(words, offsets, text) == (0, 1, 1, None, None, 2)


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.strip() != ""))
def test_any_question_can_be_asked(text):
    asked = tokenize_question(TOKENIZER, text)
    assert asked.span[1] - asked.span[0] == len(asked.offsets) == len(asked.word_of)
    for span in asked.words:
        start, end = asked.tokens_at(span)
        assert asked.span[0] <= start < end <= asked.span[1]


@pytest.fixture(autouse=True, scope="module")
def _tokenizer(chat_tokenizer):
    global TOKENIZER
    TOKENIZER = chat_tokenizer


def test_an_empty_question(chat_tokenizer):
    for text in ("", "  \n"):
        with pytest.raises(UserError, match="the question is empty"):
            tokenize_question(chat_tokenizer, text)
