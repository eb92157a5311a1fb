"""The two entities of a question, from hand-made scores of its tokens."""

from typing import Any

import numpy as np
import pytest

from probes.detector.pair import premise_pair
from probes.detector.questions import tokenize_question
from tests.premise_pairs import PAIRS, TEXTS, pair_of


def entity_at(question: Any, *words: str, low: float = -5.0) -> np.ndarray:
    """Log-odds of 4, 3, … at the tokens of the words, and ``low`` elsewhere."""
    found = np.full(len(question.offsets), low)
    for index, word in enumerate(words):
        at = question.text.index(word)
        start, end = question.tokens_at((at, at + len(word)))
        found[start - question.span[0] : end - question.span[0]] = 4.0 - index
    return found


def test_the_pair_by_hand(chat_tokenizer):
    for text, words in zip(TEXTS, PAIRS, strict=True):
        question = tokenize_question(chat_tokenizer, text)
        pair = pair_of(question, words)
        assert premise_pair(question, entity_at(question, *words)) == pair
        assert premise_pair(question, entity_at(question, *reversed(words))) == pair
        # A third one that is lower is not taken; one alone is no pair.
        third = question.text.split()[0]
        assert premise_pair(question, entity_at(question, *words, third)) == pair
        assert premise_pair(question, entity_at(question, words[0])) is None
        assert premise_pair(question, entity_at(question)) is None


def test_neighbours_are_one_entity_unless_a_comma_parts_them(chat_tokenizer):
    question = tokenize_question(chat_tokenizer, "Is Rome, Italy the home of Marco Polo?")
    found = premise_pair(question, entity_at(question, "Marco", "Polo", "Rome"))
    assert found == pair_of(question, ("Rome", "Marco Polo"))
    assert premise_pair(question, entity_at(question, "Marco", "Polo")) is None
    found = premise_pair(question, entity_at(question, "Rome", "Italy"))
    assert found == pair_of(question, ("Rome", "Italy"))


@pytest.mark.parametrize("end", [".", "?", "!"])
def test_a_pair_is_of_one_sentence(chat_tokenizer, end):
    text = f"Rome is old{end} Is Paris the capital of Germany?"
    question = tokenize_question(chat_tokenizer, text)
    expected = pair_of(question, ("Paris", "Germany"))
    assert premise_pair(question, entity_at(question, "Rome", "Paris", "Germany")) == expected
    assert premise_pair(question, entity_at(question, "Rome", "Paris")) is None
    # Of two sentences with two, the one whose second is the surest.
    found = premise_pair(question, entity_at(question, "Rome", "old", "Paris", "Germany"))
    assert found == pair_of(question, ("Rome", "old"))


def test_a_full_stop_of_an_abbreviation_ends_no_sentence(chat_tokenizer):
    question = tokenize_question(chat_tokenizer, "Is Rome older than St. Louis in Spain?")
    found = premise_pair(question, entity_at(question, "Rome", "Louis"))
    assert found == pair_of(question, ("Rome", "Louis"))
