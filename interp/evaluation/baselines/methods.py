"""Methods that act on a false premise, as values that ``method_score.score`` scores.

Nothing (``NoIntervention``), a system prompt (``SystemPrompt``), steering
(``interp.evaluation.baselines.steering``), a constraint at the known object (``Constraint``),
random heads under the same constraint (``RandomHeads``), or the constraint where a detector finds a
false premise (``Gated``).
"""

from dataclasses import dataclass

from interp.evaluation.baselines.steering import Steering
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.interventions.random_controls import random_interventions
from interp.models.hooked_model import HookedModel
from interp.moved import old_arguments
from probes.detector.detections import Detector

CHECK_THE_PREMISE = (
    "Before you answer, check whether what the question takes for granted is true. "
    "If it is false, say so and state the true fact."
)
NULL_SETS = 10


@dataclass(frozen=True)
class NoIntervention:
    """The unchanged model."""


@dataclass(frozen=True)
class SystemPrompt:
    """A system prompt before every question, in place of the chat template's own."""

    text: str = CHECK_THE_PREMISE


@dataclass(frozen=True)
class RandomHeads:
    """The constraint on random heads, matched per layer; answers are those of the first set."""

    constraint: Constraint
    n_sets: int = NULL_SETS
    seed: int = 0


@dataclass(frozen=True)
class Gated:
    """The constraint at the span where a detector fires; by default the model's own detector."""

    constraint: Constraint
    detector: Detector | None = None


Method = NoIntervention | SystemPrompt | Steering | Constraint | RandomHeads | Gated


@old_arguments(treatment="method")
def interventions_of(model: HookedModel, method: Method) -> tuple[Intervention, ...]:
    """The interventions of a method: one for each random draw, otherwise one.

    The intervention is empty for a system prompt, for steering, and for ``NoIntervention``.
    """
    if isinstance(method, Constraint):
        return (Intervention.of(method),)
    if isinstance(method, Gated):
        return (Intervention.of(method.constraint, gate="probe"),)
    if isinstance(method, RandomHeads):
        chosen = Intervention.of(method.constraint)
        return random_interventions(model, chosen, method.n_sets, seed=method.seed)
    return (Intervention(),)
