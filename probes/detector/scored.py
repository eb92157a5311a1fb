"""What probes read of questions that ran together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.forward.batch import Span
from probes.activation_reader import KeysValues
from probes.detector.questions import AskedQuestion


@dataclass(frozen=True)
class TokenScores:
    """What is known of each token of a question.

    Attributes:
        falsity, mention: log-odds of a false premise's completion, and of its object.
        entity: log-odds of a subject or object; None from probes of older versions.
        log_probability: of the token, given those before it; None if it was not read.
    """

    falsity: Float[np.ndarray, " token"]
    mention: Float[np.ndarray, " token"]
    entity: Float[np.ndarray, " token"] | None = None
    log_probability: Float[np.ndarray, " token"] | None = None

    @classmethod
    def of_questions(
        cls,
        scores: Float[Tensor, "token probe"],
        predictions: Float[Tensor, "token 3"] | None,
        sizes: Sequence[int],
    ) -> "list[TokenScores]":
        """Of questions of these sizes, from scores as `PremiseDetector.combined` gives them."""
        expected = None if predictions is None else predictions[:, 0].split(list(sizes))
        return [
            cls(
                *(column.numpy() for column in part.T),
                log_probability=None if expected is None else expected[index].numpy(),
            )
            for index, part in enumerate(scores.split(list(sizes)))
        ]

    def highest(self, column: Float[np.ndarray, " token"], asked: AskedQuestion, at: Span) -> float:
        """The highest value of a column at some tokens of the prompt."""
        first = asked.span[0]
        return float(column[at[0] - first : at[1] - first].max())

    @property
    def question(self) -> float:
        """The question's score: the highest falsity of any token."""
        return float(self.falsity.max())


@dataclass(frozen=True, eq=False)
class ScoredChunk:
    """The scores of some of the questions that were asked about, which ran together.

    Attributes:
        prompts: which of them.
        scores: one for each.
        keys_values: see `probes.activation_reader.ReadChunk`.
    """

    prompts: tuple[int, ...]
    scores: tuple[TokenScores, ...]
    keys_values: KeysValues
