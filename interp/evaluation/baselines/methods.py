"""What can be done about a false premise, as values that ``method_score.score`` scores.

Nothing (``NoIntervention``), a system prompt (``SystemPrompt``), steering
(``interp.evaluation.baselines.steering``), a constraint at the known object (``Constraint``),
random heads under the same constraint (``RandomHeads``), or the constraint where a detector says
that the premise is false (``Gated``).
"""

from dataclasses import dataclass

from interp.evaluation.baselines.steering import Steering
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.interventions.random_controls import random_interventions
from interp.models.hooked_model import HookedModel
from probes.detector.detections import Detector

CHECK_THE_PREMISE = (
    "Before you answer, check whether what the question takes for granted is true. "
    "If it is false, say so and state the true fact."
)
NULL_SETS = 10


@dataclass(frozen=True)
class NoIntervention:
    """The model as it is."""


@dataclass(frozen=True)
class SystemPrompt:
    """A system prompt before every question, in place of the chat template's own."""

    text: str = CHECK_THE_PREMISE


@dataclass(frozen=True)
class RandomHeads:
    """The constraint on random heads, as many in each layer; answers are those of the first set."""

    constraint: Constraint
    n_sets: int = NULL_SETS
    seed: int = 0


@dataclass(frozen=True)
class Gated:
    """The constraint where the detector fires, on the span that it finds (None: the model's)."""

    constraint: Constraint
    detector: Detector | None = None


Method = NoIntervention | SystemPrompt | Steering | Constraint | RandomHeads | Gated


def interventions_of(model: HookedModel, treatment: Method) -> tuple[Intervention, ...]:
    """The interventions that a treatment compares: one for each random draw, otherwise one.

    A model that is as it is has the empty one; so has steering, which is no intervention.
    """
    if isinstance(treatment, Constraint):
        return (Intervention.of(treatment),)
    if isinstance(treatment, Gated):
        return (Intervention.of(treatment.constraint, gate="probe"),)
    if isinstance(treatment, RandomHeads):
        chosen = Intervention.of(treatment.constraint)
        return random_interventions(model, chosen, treatment.n_sets, seed=treatment.seed)
    return (Intervention(),)
