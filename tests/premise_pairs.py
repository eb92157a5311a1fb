"""Questions whose two entities are known."""

from typing import Any

from probes.detector.pair import Pair

TEXTS = (
    "Why is Paris the capital of Germany?",
    "In which year did Rome become the capital of Spain?",
    "Which buildings of Japan stand in its capital, Buenos Aires?",
)
PAIRS = (("Paris", "Germany"), ("Rome", "Spain"), ("Japan", "Buenos Aires"))


def pair_of(question: Any, words: tuple[str, str]) -> Pair:
    """The tokens of two words of a question, in their order."""
    places = [(question.text.index(word), word) for word in words]
    return Pair(*(question.tokens_at((at, at + len(word))) for at, word in places))
