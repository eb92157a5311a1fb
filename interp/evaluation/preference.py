"""What an answer prefers: the true or the false object, at the first token that tells them apart.

Read after the cloze on false-premise prompts and on their true-premise twins (where the *false*
object is the one that the twin does not mention), for any number of interventions at once.

Head sets under one setting go through the sweep engine (``preference``). Anything with experts in
it, and mode ``resample`` at spans that a detector found, takes one whole run of all prompts for
each intervention: the engine knows neither, and the numbers come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.evaluation.jobs import (
    PreferenceJob,
    WholeRunsJob,
    preference_values,
    whole_run_values,
)
from interp.forward.batch import Span
from interp.heads.headset import HeadSet
from interp.heads.significance import mean_interval
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.jobs import RUN_HERE, JobFunction, JobRunner, OutputSpec
from interp.models.hooked_model import HookedModel
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

    @classmethod
    def from_values(
        cls, values: Float[Tensor, "metric prompt set"], encoded: EncodedPremises
    ) -> "Preference":
        """From the values of ``preference_metrics`` on these prompts."""
        difference, p_true, p_false = values.numpy()
        return cls(difference, p_true, p_false, encoded.subjects, encoded.templates)

    def without_first(self) -> "Preference":
        """Without the first set, which ``preference_under`` runs without any intervention."""
        difference, p_true, p_false = self.logit_difference, self.p_true, self.p_false
        return replace(
            self, logit_difference=difference[:, 1:], p_true=p_true[:, 1:], p_false=p_false[:, 1:]
        )

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


@checked
def preference(
    model: HookedModel,
    encoded: EncodedPremises,
    kind: QuestionKind,
    constraint: Constraint,
    sets: Sequence[HeadSet],
    *,
    mean: Any = None,
    budget: int | None = None,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> Preference:
    """Run the prompts under each head set, in the constraint's site and mode.

    An empty head set is the unconstrained model. ``constraint.heads`` itself is not used.
    """
    job = PreferenceJob(encoded, kind, constraint, tuple(sets), mean, budget)
    return _preference(preference_values, model, job, stages, progress)


def _preference(
    work: JobFunction,
    model: HookedModel,
    job: PreferenceJob | WholeRunsJob,
    stages: JobRunner,
    progress: bool,
) -> Preference:
    done = stages.made(
        work,
        model,
        job,
        description=f"{job.kind} premises",
        gives=OutputSpec({"values": 3}),
        progress=progress,
    )
    return Preference.from_values(done.tensors["values"].transpose(0, 1), job.encoded)


def preference_under(
    model: HookedModel,
    encoded: EncodedPremises,
    kind: QuestionKind,
    interventions: Sequence[Intervention],
    *,
    spans: Sequence[Span | None] | None = None,
    unconstrained: Preference | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    budget: int | None = None,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> Preference:
    """Run the prompts without any intervention, and then under each.

    Args:
        spans: where to act in each prompt, by default at its object. A prompt with None is not
            run again: under every intervention it has the very values of the first run.
        unconstrained: with ``spans``, the values of the first run if it has been done.
        mean: what mode ``mean`` puts in; a sweep at once takes the mean over these prompts without
            it, whole runs and stages that cut the prompts apart need it.
        stages: where sweeps are done, and kept.

    Returns:
        sets are [none, the first intervention, the second, …].
    """
    options: dict[str, Any] = {
        "mean": mean,
        "budget": budget,
        "progress": progress,
        "stages": stages,
    }
    if spans is None:
        return _run(model, encoded, kind, [Intervention(), *interventions], **options)
    # The first run has to come from the same modules as those that are compared with it.
    whole = not _can_sweep(interventions, resample=False)
    bare = unconstrained or _run(model, encoded, kind, [Intervention()], whole=whole, **options)
    difference, p_true, p_false = (
        np.repeat(one, 1 + len(interventions), axis=1)
        for one in (bare.logit_difference, bare.p_true, bare.p_false)
    )
    rows = [row for row, span in enumerate(spans) if span is not None]
    if rows:
        placed = _at_spans(encoded, kind, spans, rows)
        held = _run(model, placed, kind, interventions, whole=whole, **options)
        difference[rows, 1:] = held.logit_difference
        p_true[rows, 1:], p_false[rows, 1:] = held.p_true, held.p_false
    return Preference(difference, p_true, p_false, encoded.subjects, encoded.templates)


def _at_spans(
    encoded: EncodedPremises, kind: QuestionKind, spans: Sequence[Span | None], rows: Sequence[int]
) -> EncodedPremises:
    """Some of the premises, with what was found in the place of the object."""
    items = []
    for row in rows:
        item = encoded.items[row]
        items.append(replace(item, **{kind: replace(item.prompt(kind), object=spans[row])}))
    return replace(encoded, items=tuple(items))


def _can_sweep(interventions: Sequence[Intervention], *, resample: bool = True) -> bool:
    """Whether one sweep does them all; ``resample`` says whether it may be by that mode."""
    parts = [part for one in interventions for part in one.heads]
    settings = {(part.site, part.mode, part.factor) for part in parts}
    if len(settings) > 1 or any(one.experts for one in interventions):
        return False
    return resample or all(part.mode != "resample" for part in parts)


def _run(
    model: HookedModel,
    encoded: EncodedPremises,
    kind: QuestionKind,
    interventions: Sequence[Intervention],
    *,
    mean: Float[Tensor, "layer head d_head"] | None,
    budget: int | None,
    progress: bool,
    stages: JobRunner,
    whole: bool = False,
) -> Preference:
    """By one sweep where the engine can, otherwise by whole runs."""
    parts = [part for one in interventions for part in one.heads]
    if not whole and _can_sweep(interventions):
        setting = parts[0] if parts else Constraint(HeadSet(()))
        sets = [
            one.heads[0].heads if one.heads else HeadSet((), setting.site) for one in interventions
        ]
        return preference(
            model,
            encoded,
            kind,
            setting,
            sets,
            mean=mean,
            budget=budget,
            progress=progress,
            stages=stages,
        )
    job = WholeRunsJob(encoded, kind, tuple(interventions), mean)
    return _preference(whole_run_values, model, job, stages, progress)
