"""What probes read of questions that ran together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.activation_reader import KeysValues


@dataclass(frozen=True)
class TokenScores:
    """Log-odds of falsity and of mention at the tokens of a question."""

    falsity: Float[np.ndarray, " token"]
    mention: Float[np.ndarray, " token"]

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
