"""The two entities that a premise joins, as a probe finds them in a question.

The *entity* probe separates the tokens of subjects and objects from all others, in any relation.
Neighbouring words above zero log-odds are one entity. The pair are the two with the highest words
in one sentence: of the sentences with two, the one whose second entity is the surest. A question
without such a sentence has no premise about two things ("Which city is the capital of Algeria?"),
and nothing in it can be false.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from interp.forward.batch import Span
from probes.detector.questions import AskedQuestion

_SENTENCE_END = re.compile(r"(?:[!?…]|(?<!\b[A-Z])(?<!\b[A-Z][a-z])\.)(?=\s|$)|[。！？]|\n")
"""Not a full stop behind a capital with one letter or none, as in "St. Louis" and "J. Watt"."""


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
    surest: tuple[float, list[Span]] = (0.0, [])
    for groups in _by_sentence(asked, _neighbours(asked, scores)):
        highest = sorted(groups, key=lambda group: scores[group[0] : group[1]].max())[-2:]
        second = float(scores[highest[0][0] : highest[0][1]].max())
        if len(highest) == 2 and second > surest[0]:
            surest = second, highest
    if not surest[1]:
        return None
    words = asked.words
    tokens = [asked.tokens_at((words[start][0], words[end - 1][1])) for start, end in surest[1]]
    pair = Pair(*sorted(tokens))
    alone = pair.earlier[0] == 0 and pair.earlier[1] == pair.later[0]
    return None if alone or pair.earlier[1] > pair.later[0] else pair


def _by_sentence(asked: AskedQuestion, groups: Iterable[Span]) -> list[list[Span]]:
    """The runs of words in each sentence that has any, in order."""
    found: list[list[Span]] = []
    for group in groups:
        if found:
            end, start = asked.words[found[-1][-1][1] - 1][1], asked.words[group[0]][0]
            if not _SENTENCE_END.search(asked.text, end, start):
                found[-1].append(group)
                continue
        found.append([group])
    return found


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
