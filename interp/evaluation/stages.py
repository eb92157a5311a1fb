"""The slow parts of an evaluation as values: a sweep over head sets, and greedy answers.

``Stages`` does them here and at once. A run directory has its own (``interp.runs.stages``), which
keeps what is done, shard by shard, and may have it done elsewhere; the numbers are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.heads.headset import HeadSet
from interp.interventions.constraint import Constraint
from interp.patching.metrics import LogitDifference, Probability
from interp.patching.sweep import sweep_sets
from interp.premises.encode import EncodedPremises
from interp.premises.questions import QuestionKind


@dataclass(frozen=True)
class PreferenceJob:
    """Prompts to be run under each of some head sets, in one site and mode.

    Attributes:
        encoded, kind: the prompts.
        constraint: site, mode and factor; its own heads are not used.
        sets: an empty one is the unconstrained model.
        mean: what mode ``mean`` puts in.
        budget: bytes that one forward pass may take.
    """

    encoded: EncodedPremises
    kind: QuestionKind
    constraint: Constraint
    sets: tuple[HeadSet, ...]
    mean: Float[Tensor, "layer head d_head"] | None = None
    budget: int | None = None

    def take(self, prompts: Sequence[int]) -> "PreferenceJob":
        """The same for some of the prompts."""
        return replace(self, encoded=self.encoded.take(prompts))


def preference_metrics(
    encoded: EncodedPremises,
) -> tuple[LogitDifference, Probability, Probability]:
    """Logit difference (true − false), P(true), P(false)."""
    return (
        LogitDifference(encoded.true_tokens, encoded.false_tokens),
        Probability(encoded.true_tokens),
        Probability(encoded.false_tokens),
    )


@torch.no_grad()
def preference_values(
    model: Any, job: PreferenceJob, *, progress: bool = True
) -> Float[Tensor, "metric prompt set"]:
    """The three metrics of every prompt under every head set."""
    edit = job.constraint.edit(model, job.encoded, job.kind, mean=job.mean)
    return sweep_sets(
        model, job.encoded.batch(job.kind), edit, [heads.heads for heads in job.sets],
        preference_metrics(job.encoded), budget=job.budget, progress=progress,
        description=f"{job.kind} premises",
    )  # fmt: skip


class Stages:
    """Does everything here and at once."""

    def values(
        self, model: Any, job: PreferenceJob, *, progress: bool = True
    ) -> Float[Tensor, "metric prompt set"]:
        """See ``preference_values``."""
        return preference_values(model, job, progress=progress)

    def texts(self, about: Mapping[str, Any], make: Callable[[], list[str]]) -> list[str]:
        """What ``make`` returns.

        Args:
            about: all that decides the texts beside the model, as JSON can hold it.
        """
        return make()


AT_ONCE = Stages()
