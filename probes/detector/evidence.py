"""Evidence for a false premise at each token of a question, and how it is combined.

Two probes read the residual stream (`probes.detector.fit`): *falsity* and *mention*. The model's
own expectation needs no training: at the object of a false premise the model expected another word.
The *surprise* of a token is the highest log-probability of any token in its place, less its own;
the *recent surprise* is the highest surprise of the token and the three before it, because an
object of several tokens is only surprising at its first. The *entropy* tells places where the model
expected something from those where it did not.

A logistic regression over these numbers gives the log-odds of a token. With few numbers and many
relations, it weighs what holds in relations that the probes were not fitted on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from interp.arguments import check_choice
from interp.errors import UserError
from interp.lazy import linear_model

PROBES = ("falsity", "mention")
"""Evidence from probes."""
EXPECTATION = ("surprise", "recent_surprise", "entropy")
"""Evidence from the model's predictions."""
MOST_SURPRISE = 10.0
"""In nats; larger surprises count as this one, so that rare names do not outweigh everything."""
RECENT = 3
"""Tokens before a token whose surprise counts as recent."""
_MAX_ITERATIONS = 1000

COMBINATION_SHAPE = {"names": [str], "weights": [float], "bias": float}
"""What `Combination.from_dict` takes; see `interp.files.shape.check_shape`."""


def token_evidence(
    probes: Float[np.ndarray, "token 2"],
    predictions: Float[np.ndarray, "token 3"] | None,
    sizes: Sequence[int],
) -> dict[str, Float[np.ndarray, " token"]]:
    """All evidence by name.

    Args:
        probes: log-odds of falsity and mention.
        predictions: see `probes.activation_reader.PREDICTIONS`; None where they were not read.
        sizes: how many tokens each question has, question after question.
    """
    found: dict[str, np.ndarray] = {name: probes[:, at] for at, name in enumerate(PROBES)}
    if predictions is None:
        return found
    own_log_probability, highest, entropy = predictions.astype(float).T
    surprise = np.minimum(highest - own_log_probability, MOST_SURPRISE)
    position = np.concatenate([np.arange(size) for size in sizes])
    recent = surprise
    for step in range(1, RECENT + 1):
        earlier = np.concatenate([np.full(step, -np.inf), surprise])[: len(surprise)]
        recent = np.where(position >= step, np.maximum(recent, earlier), recent)
    return {**found, "surprise": surprise, "recent_surprise": recent, "entropy": entropy}


@dataclass(frozen=True)
class Combination:
    """Log-odds of a token: a weighted sum of its evidence.

    Attributes:
        names: of the evidence, among `PROBES` and `EXPECTATION`.
        weights: one a name.
        bias: the log-odds where all evidence is zero.

    Raises UserError for unknown evidence, or numbers that do not fit.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        for name in self.names:
            check_choice("evidence", name, (*PROBES, *EXPECTATION))
        if not self.names or len(self.names) != len(self.weights):
            raise UserError("a combination needs one weight for each kind of evidence")
        if not all(map(math.isfinite, (*self.weights, self.bias))):
            raise UserError("a combination holds a number that is not finite")

    @property
    def uses_predictions(self) -> bool:
        """Whether the model has to be run to its top."""
        return any(name in EXPECTATION for name in self.names)

    def __call__(
        self, evidence: dict[str, Float[np.ndarray, " token"]]
    ) -> Float[np.ndarray, " token"]:
        """The log-odds of each token."""
        columns = np.stack([evidence[name] for name in self.names], axis=-1)
        return columns @ np.array(self.weights) + self.bias

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"names": list(self.names), "weights": list(self.weights), "bias": self.bias}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Combination":
        """From the result of `to_dict`, of the shape `COMBINATION_SHAPE`."""
        weights = tuple(float(weight) for weight in content["weights"])
        return cls(tuple(content["names"]), weights, float(content["bias"]))


def fit_combination(
    evidence: dict[str, Float[np.ndarray, " token"]],
    labels: Bool[np.ndarray, " token"],
    weights: Float[np.ndarray, " token"],
) -> Combination:
    """Fit the weights on tokens that the probes were not fitted on.

    Raises UserError for tokens of one class only.
    """
    if len(set(labels.tolist())) < 2:
        raise UserError("the evidence cannot be weighed on tokens of one class only")
    names = tuple(evidence)
    columns = np.stack([evidence[name] for name in names], axis=1)
    found, bias = weigh(columns, labels, weights)
    return Combination(names, found, bias)


def weigh(
    columns: Float[np.ndarray, "row evidence"],
    labels: Bool[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"] | None = None,
) -> tuple[tuple[float, ...], float]:
    """Weights and bias of a logistic regression; the penalty does not depend on the units."""
    centre, scale = columns.mean(axis=0), columns.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    regression = linear_model.LogisticRegression(max_iter=_MAX_ITERATIONS)
    regression.fit((columns - centre) / scale, labels, weights)
    found = np.asarray(regression.coef_)[0] / scale
    bias = float(np.asarray(regression.intercept_)[0] - found @ centre)
    return tuple(found.tolist()), bias
