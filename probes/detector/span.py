"""Where a false premise is: from what two probes say of each token to words of the question.

The *falsity* probe is highest where the premise has just turned out to be false: at the last token
of the object, or, where the question names the object first ("Why did Apple create Windows?"), of
the subject. The *mention* probe tells the object's tokens from all others. The false object is
looked for among the words up to the one where the falsity probe is highest: it is the word that the
mention probe favours most. Neighbouring words belong to it as long as the mention probe says so, or
as both are written with a capital and only space stands between.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from interp.forward.batch import Span
from probes.detector.questions import AskedQuestion

JOINS = -1.0
"""Log-odds of the mention probe from which a neighbouring word belongs to the object."""


def false_words(
    asked: AskedQuestion,
    falsity: Float[np.ndarray, " token"],
    mention: Float[np.ndarray, " token"],
) -> Span | None:
    """The characters [start, end) that are likeliest to be the false object.

    Args:
        falsity, mention: log-odds of both probes at the question's tokens.

    Returns:
        None for a question without a word.
    """
    words = asked.words
    of_token = asked.word_of
    if not words or all(word is None for word in of_token):
        return None
    falsest = _word_at(of_token, int(np.argmax(falsity)))
    scores = _by_word(of_token, mention, len(words))
    scores[falsest + 1 :] = -np.inf
    chosen = int(np.argmax(scores))
    first = last = chosen
    while first > 0 and _joined(asked.text, words, scores, first - 1, first, chosen):
        first -= 1
    while last < falsest and _joined(asked.text, words, scores, last, last + 1, chosen):
        last += 1
    return words[first][0], words[last][1]


def _word_at(of_token: Sequence[int | None], token: int) -> int:
    """The word of a token; of one that has none (a mark), the nearest before it, or after it."""
    before = [word for word in of_token[: token + 1] if word is not None]
    return before[-1] if before else next(word for word in of_token if word is not None)


def _by_word(
    of_token: Sequence[int | None], scores: Float[np.ndarray, " token"], n_words: int
) -> Float[np.ndarray, " word"]:
    """Each word's highest score; a word that no token ends in is out of the question."""
    found = np.full(n_words, -np.inf)
    for word, score in zip(of_token, scores, strict=True):
        if word is not None:
            found[word] = max(found[word], score)
    return found


def _joined(
    text: str,
    words: Sequence[Span],
    scores: Float[np.ndarray, " word"],
    left: int,
    right: int,
    chosen: int,
) -> bool:
    """Whether two neighbouring words belong to one mention, the chosen word's."""
    if text[words[left][1] : words[right][0]].strip():
        return False
    other = left if right <= chosen else right
    capitals = left > 0 and all(text[words[word][0]].isupper() for word in (left, right))
    return bool(scores[other] > JOINS) or capitals
