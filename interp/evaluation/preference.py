"""What an answer prefers: the true or the false object, at the first token that tells them apart.

Read after the cloze on false-premise prompts and on their true-premise twins (where the *false*
object is the one that the twin does not mention), for any number of head sets at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.heads.headset import HeadSet
from interp.heads.significance import mean_interval
from interp.interventions.constraint import Constraint
from interp.patching.metrics import LogitDifference, Probability
from interp.patching.sweep import sweep_sets
from interp.premises.encode import EncodedPremises
from interp.premises.questions import QuestionKind

Interval = list[float]
"""[value, low, high]: a mean and its 95 % interval from resampling subjects."""


@dataclass(frozen=True)
class Preference:
    """Per prompt and head set: logit difference (true − false) and both objects' probabilities."""

    logit_difference: Float[np.ndarray, "prompt set"]
    p_true: Float[np.ndarray, "prompt set"]
    p_false: Float[np.ndarray, "prompt set"]
    subjects: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def accuracy(self) -> Float[np.ndarray, " set"]:
        """Share of prompts that prefer the true object, per head set."""
        return (self.logit_difference > 0).mean(axis=0)

    def measures(self, index: int, *, template: str | None = None, seed: int = 0) -> dict[str, Any]:
        """The measures of one head set, each [value, low, high], over all or one template."""
        rows = [i for i, name in enumerate(self.templates) if template in (None, name)]
        subjects = [self.subjects[i] for i in rows]

        def interval(values: np.ndarray) -> Interval:
            return list(mean_interval(values[rows], subjects, seed=seed))

        difference = self.logit_difference[:, index]
        return {
            "n": len(rows),
            "preference_accuracy": interval((difference > 0).astype(float)),
            "p_true_object": interval(self.p_true[:, index]),
            "p_false_object": interval(self.p_false[:, index]),
            "logit_difference": interval(difference),
        }


def preference(
    model: Any,
    encoded: EncodedPremises,
    kind: QuestionKind,
    constraint: Constraint,
    sets: Sequence[HeadSet],
    *,
    mean: Any = None,
    budget: int | None = None,
    progress: bool = True,
) -> Preference:
    """Run the prompts under each head set, in the constraint's site and mode.

    An empty head set is the unconstrained model. ``constraint.heads`` itself is not used.
    """
    metrics = (
        LogitDifference(encoded.true_tokens, encoded.false_tokens),
        Probability(encoded.true_tokens),
        Probability(encoded.false_tokens),
    )
    edit = constraint.edit(model, encoded, kind, mean=mean)
    values = sweep_sets(
        model, encoded.batch(kind), edit, [heads.heads for heads in sets], metrics,
        budget=budget, progress=progress, description=f"{kind} premises",
    ).numpy()  # fmt: skip
    return Preference(values[0], values[1], values[2], encoded.subjects, encoded.templates)
