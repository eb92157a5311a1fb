"""Locate a false premise: from two probes' scores of each token to words of the question.

The *falsity* probe is highest where the premise turns out to be false: at the last token of the
object or, where the question names the object first ("Why did Apple create Windows?"), of the
subject. The *mention* probe tells the object's tokens from all others. The false object is the word
with the highest mention score among the words up to the one of highest falsity. Neighbouring words
are added while their mention score is high enough, or while both are capitalised and separated by
space only.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from interp.forward.batch import Span
from probes.detector.questions import AskedQuestion

JOINS = -1.0
"""Log-odds of the mention probe above which a neighbouring word belongs to the object."""


def false_words(
    asked: AskedQuestion, falsity: Float[np.ndarray, " token"], mention: Float[np.ndarray, " token"]
) -> Span | None:
    """The characters [start, end) that are most likely the false object.

    Args:
        falsity, mention: log-odds of both probes at the question's tokens.

    Returns:
        the characters, or None for a question without a word.
    """
    words, word_of = asked.words, asked.word_of
    if not words or all(word is None for word in word_of):
        return None
    falsest = _word_at(word_of, int(np.argmax(falsity)))
    scores = np.full(len(words), -np.inf)  # each word's highest mention score
    for word, score in zip(word_of, mention, strict=True):
        if word is not None and word <= falsest:
            scores[word] = max(scores[word], score)

    def joined(left: int, other: int) -> bool:
        """Whether word ``other`` of the words ``left`` and ``left + 1`` belongs to the mention."""
        pair = words[left], words[left + 1]
        if asked.text[pair[0][1] : pair[1][0]].strip():
            return False
        capitals = left > 0 and all(asked.text[start].isupper() for start, _ in pair)
        return bool(scores[other] > JOINS) or capitals

    first = last = int(np.argmax(scores))
    while first > 0 and joined(first - 1, first - 1):
        first -= 1
    while last < falsest and joined(last, last + 1):
        last += 1
    return words[first][0], words[last][1]


def _word_at(word_of: Sequence[int | None], token: int) -> int:
    """The word of a token; for punctuation, the nearest word before it, or else after it."""
    before = [word for word in word_of[: token + 1] if word is not None]
    return before[-1] if before else next(word for word in word_of if word is not None)
