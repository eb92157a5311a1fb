"""The two entities that a premise joins, as a probe finds them in a question.

The *entity* probe separates the tokens of subjects and objects from all others, in any relation.
Neighbouring words above zero log-odds are one entity; the two with the highest word are the pair. A
question with fewer has no premise about two things ("Which city is the capital of Algeria?"), and
nothing in it can be false.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from interp.forward.batch import Span
from probes.detector.questions import AskedQuestion


class Pair(NamedTuple):
    """Both entities' tokens [start, end) in the prompt, in their order."""

    earlier: Span
    later: Span


def premise_pair(asked: AskedQuestion, entity: Float[np.ndarray, " token"]) -> Pair | None:
    """The two entities of a question; None if there are fewer, or nothing is in front of them.

    Args:
        entity: log-odds of the entity probe at the question's tokens.
    """
    scores = np.full(len(asked.words), -np.inf)  # each word's highest token
    for word, score in zip(asked.word_of, entity, strict=True):
        if word is not None:
            scores[word] = max(scores[word], score)
    groups = sorted(_neighbours(asked, scores), key=lambda group: scores[group[0] : group[1]].max())
    if len(groups) < 2:
        return None
    words = asked.words
    tokens = [asked.tokens_at((words[start][0], words[end - 1][1])) for start, end in groups[-2:]]
    pair = Pair(*sorted(tokens))
    alone = pair.earlier[0] == 0 and pair.earlier[1] == pair.later[0]
    return None if alone or pair.earlier[1] > pair.later[0] else pair


def _neighbours(asked: AskedQuestion, scores: Sequence[float] | np.ndarray) -> list[Span]:
    """The words [start, end) of each run of neighbours above zero, with only space in between."""
    found: list[Span] = []
    for word, score in enumerate(scores):
        if score <= 0:
            continue
        if found and found[-1][1] == word:
            between = asked.text[asked.words[word - 1][1] : asked.words[word][0]]
            if not between.strip():
                found[-1] = (found[-1][0], word + 1)
                continue
        found.append((word, word + 1))
    return found
