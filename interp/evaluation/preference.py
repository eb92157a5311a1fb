"""Preference for the true or the false object, at the first token that tells them apart.

It is read after the cloze on false-premise prompts and on their true-premise twins (where the
*false* object is the one that the twin does not mention), for any number of interventions at once.

Head sets of one site and mode run in a sweep. Interventions on experts, mode ``resample`` at spans
that a detector found, and gate ``soft`` take one whole run of all prompts each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.evaluation.jobs import PreferenceJob, WholeRunsJob, preference_values, whole_run_values
from interp.forward.batch import Span
from interp.heads.headset import HeadSet
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.jobs import RUN_HERE, JobRunner, OutputSpec, Shard
from interp.models.hooked_model import HookedModel
from interp.premises.encode import EncodedPremises
from interp.premises.questions import QuestionKind
from interp.statistics.significance import mean_interval

Interval = list[float]
"""[value, low, high]: a mean and its 95 % interval from resampling subjects."""

VALUES = ("logit_difference", "p_true", "p_false")
"""The values of a ``Preference``, in the order of ``preference_metrics``."""

_PreferenceJobs = PreferenceJob | WholeRunsJob


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
        """Without the first set, which ``preference_under`` runs without an intervention."""
        return replace(self, **{name: getattr(self, name)[:, 1:] for name in VALUES})

    @classmethod
    def joined(cls, parts: "Sequence[Preference]") -> "Preference":
        """The prompts of several, one after another."""
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in VALUES},
            subjects=tuple(subject for part in parts for subject in part.subjects),
            templates=tuple(template for part in parts for template in part.templates),
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
    *,
    constraint: Constraint,
    sets: Sequence[HeadSet],
    mean: Any = None,
    budget: int | None = None,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> Preference:
    """Run the prompts under each head set, in the constraint's site and mode.

    An empty head set is the unconstrained model. ``constraint.heads`` itself is not used.
    """
    job = PreferenceJob(encoded, kind, constraint, tuple(sets), mean, budget)
    return _preference(job, _runner(model, job, progress=progress, stages=stages)(job))


def preference_under(
    model: HookedModel,
    encoded: EncodedPremises,
    kind: QuestionKind,
    *,
    interventions: Sequence[Intervention],
    spans: Sequence[Span | None] | None = None,
    strengths: Sequence[float] | None = None,
    unconstrained: Preference | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    budget: int | None = None,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> Preference:
    """Run the prompts without any intervention, and then under each.

    Args:
        spans: where to act in each prompt, by default at its object. A prompt with None is not run
            again: under every intervention it keeps the values of the first run.
        strengths: with ``spans``, how much of the interventions acts in each prompt (see
            ``interp.interventions.constrain``); by default all of it.
        unconstrained: with ``spans``, the values of the first run if they are known.
        mean: what mode ``mean`` puts in. A single sweep takes the mean over these prompts by
            default; whole runs, and stages that cut the prompts into shards, need it.
        stages: where sweeps are done, and kept.

    Returns:
        sets are [none, the first intervention, the second, …].
    """
    whole = strengths is not None or not _can_sweep(interventions, resample=spans is None)

    def job(
        premises: EncodedPremises,
        under: Sequence[Intervention],
        strong: tuple[float, ...] | None = None,
    ) -> _PreferenceJobs:
        if whole:
            return WholeRunsJob(premises, kind, tuple(under), mean, strong)
        setting = next((part for each in under for part in each.heads), Constraint(HeadSet(())))
        empty = HeadSet((), setting.site)
        sets = tuple(each.heads[0].heads if each.heads else empty for each in under)
        return PreferenceJob(premises, kind, setting, sets, mean, budget)

    under = job(encoded, [Intervention(), *interventions] if spans is None else [Intervention()])
    # Sweeps and whole runs differ in the last bits, so both runs are of one sort.
    run = _runner(model, under, progress=progress, stages=stages)
    if spans is None:
        return _preference(under, run(under))
    first = unconstrained or _preference(under, run(under))
    values = {name: np.repeat(getattr(first, name), 1 + len(interventions), 1) for name in VALUES}
    found = {row: span for row, span in enumerate(spans) if span is not None}
    if found:
        items = []
        for row, span in found.items():
            item = encoded.items[row]
            items.append(replace(item, **{kind: replace(item.prompt(kind), object=span)}))
        strong = None if strengths is None else tuple(strengths[row] for row in found)
        under = job(replace(encoded, items=tuple(items)), interventions, strong)
        acted = _preference(under, run(under))
        for name in VALUES:
            values[name][list(found), 1:] = getattr(acted, name)
    return replace(first, **values)


def _can_sweep(interventions: Sequence[Intervention], *, resample: bool) -> bool:
    """Whether one sweep does them all; ``resample`` says whether sweeps may use that mode."""
    parts = [part for each in interventions for part in each.heads]
    # Decoding steps do not count: what is scored is read in the prefill.
    settings = {(part.site, part.mode, part.factor) for part in parts}
    if len(settings) > 1 or any(each.experts for each in interventions):
        return False
    return resample or all(part.mode != "resample" for part in parts)


def _runner(
    model: HookedModel, job: _PreferenceJobs, *, progress: bool, stages: JobRunner
) -> Callable[[_PreferenceJobs], Shard]:
    """Runs jobs of this kind, on the model."""
    return partial(
        stages.run,
        preference_values if isinstance(job, PreferenceJob) else whole_run_values,
        model,
        description=f"{job.kind} premises",
        output=OutputSpec({"values": 3}),
        progress=progress,
    )


def _preference(job: _PreferenceJobs, done: Shard) -> Preference:
    return Preference.from_values(done.tensors["values"].transpose(0, 1), job.encoded)
