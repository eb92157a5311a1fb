"""Effects of each expert on each task: interventions on its gate, scored by the right answers.

An expert of one projection (or the expert with the same number in many) is switched off, forced or
scaled (``interp.interventions.expert_constraint``) at all tokens, and every example's right answer
is scored again. Sign: effect = loss under the intervention − loss without, in nats per answer
token, so a
**positive** effect means that the intervention hurts: the expert was of use. The change of accuracy
has the opposite sign when it hurts.

``exact`` runs the model once for each expert and batch, from the expert's layer on and over the
examples that use it; an expert that no token of an example is routed to cannot change it under
``off``, ``off_renormalised`` or ``scale``, and has effect zero there without a run. ``attribution``
is the first-order estimate of all experts from one backward pass. With a ``budget`` the estimate
ranks, and only so many experts are run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from interp.arguments import check_choice
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.effects.jobs import (
    ESTIMATED,
    MEASURED,
    ExpertJob,
    estimate_experts,
    greedy_accuracy,
    measure_experts,
    most_promising,
)
from interp.figures.experts import effects_figure
from interp.jobs import RUN_HERE, JobRunner
from interp.models.hooked_model import HookedModel
from interp.moelora.data.encoding import EncodedExample, encode_example
from interp.moelora.data.examples import Example
from interp.moelora.projections import AdaptedProjection, find_projection, projections_of
from interp.patching.result import PatchEffects
from interp.precision import dtype_of, precision_of
from interp.statistics.significance import MINIMUM_GROUPS, q_values

EffectMethod = Literal["exact", "attribution"]
EffectMode = Literal["off", "off_renormalised", "force", "scale"]
Tasks = Mapping[str, Sequence[Example | EncodedExample]]
EVERYWHERE = "everywhere"
"""Stands for the projection where experts are taken together across projections."""
_LOSS = "loss (nats per answer token)"


@dataclass(frozen=True, eq=False)
class ExpertEffects(Displayed):
    """Effects of each expert on each example of each task.

    Attributes:
        loss: change of the loss, [prompt projection expert]; ``templates`` are the tasks, and
            ``corrupted`` is the loss without interventions. NaN where there is no such expert, or
            it was beyond the budget.
        accuracy: change of accuracy, likewise; None for ``attribution``.
        estimate: the first-order change of loss, where a budget needed it.
        projections: along the axis; None where experts were taken together across them.
    """

    loss: PatchEffects
    accuracy: PatchEffects | None = None
    estimate: PatchEffects | None = None
    projections: tuple[AdaptedProjection, ...] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(dict.fromkeys(self.loss.templates))

    def of(self, task: str, *, what: Literal["loss", "accuracy"] = "loss") -> PatchEffects:
        """The effects on one task's examples. Raises UserError for an unknown task."""
        result = self.loss if what == "loss" else self.accuracy
        if result is None:
            raise UserError("an estimate from gradients has no accuracies")
        rows = [row for row, name in enumerate(result.templates) if name == task]
        if not rows:
            raise UserError(f"unknown task {task!r}; known: {', '.join(self.tasks)}")
        return result.take(rows)

    @property
    def matrix(self) -> Float[np.ndarray, "projection expert task"]:
        """Mean change of loss, every subject of a task weighing the same."""
        return np.stack([self.of(task).group_mean for task in self.tasks], axis=-1)

    def to_dataframe(self) -> pd.DataFrame:
        """One row an expert and task, largest change of loss first.

        Columns: ``projection``, ``layer``, ``target``, ``expert``, ``task``, ``effect`` (change of
        loss), ``ci_low``, ``ci_high``, ``p_value``, ``q_value`` (over all rows; NaN for a task with
        fewer than ``MINIMUM_GROUPS`` subjects), ``accuracy_change``, ``n`` examples.
        """
        frames = [self._of_task(task) for task in self.tasks]
        table = pd.concat(frames, ignore_index=True)
        q_value = q_values(table["p_value"].to_numpy())
        table.insert(table.columns.get_loc("p_value") + 1, "q_value", q_value)  # type: ignore[arg-type]
        return table.sort_values("effect", ascending=False, kind="stable", ignore_index=True)

    def _of_task(self, task: str) -> pd.DataFrame:
        result = self.of(task)
        effect = result.group_mean
        unknown = np.full(effect.shape, np.nan)
        enough = len(set(result.groups)) >= MINIMUM_GROUPS
        columns = {"effect": effect}
        for name in ("ci_low", "ci_high", "p_value"):
            columns[name] = getattr(result.statistics, name) if enough else unknown
        columns["accuracy_change"] = (
            unknown if self.accuracy is None else self.of(task, what="accuracy").group_mean
        )
        unit = np.nonzero(~np.isnan(effect))
        names = [self._name(int(number)) for number in unit[0]]
        table = pd.DataFrame(names, columns=["projection", "layer", "target"])
        numbers = {name: values[unit] for name, values in columns.items()}
        return table.assign(expert=unit[1], task=task, **numbers, n=len(result))

    def _name(self, number: int) -> tuple[str, int, str]:
        if self.projections is None:
            return EVERYWHERE, -1, EVERYWHERE
        projection = self.projections[number]
        layer = -1 if projection.layer is None else projection.layer
        return projection.name, layer, projection.module_target

    def plot(self, *, task: str | None = None, top: int = 30) -> go.Figure:
        """The ``top`` experts by largest effect × task; or of one task, projection × expert."""
        if task is not None:
            return self.of(task).plot(title=task)
        return effects_figure(
            self.matrix,
            projections=self.loss.labels["projection"],
            tasks=self.tasks,
            source=self.loss.source,
            top=top,
        )

    def _shown(self) -> Shown:
        words = (
            f"Effects of experts on {len(self.tasks)} tasks ({self.loss.method}, "
            f"{self.loss.source}): change of loss in nats per answer token. Positive: the expert "
            "was of use."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


def expert_effects(
    model: HookedModel,
    tasks: Tasks,
    *,
    mode: EffectMode = "off",
    factor: float = 0.0,
    layers: Iterable[int] | None = None,
    targets: Sequence[str] | None = None,
    together: bool = False,
    method: EffectMethod = "exact",
    budget: int | None = None,
    greedy: bool = False,
    seed: int = 0,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> ExpertEffects:
    """The effect of an intervention on each expert alone, on every example of every task.

    Args:
        model: from ``interp.moelora.hooked``.
        tasks: task → examples with prompt and right answer.
        mode, factor: what is done to the expert; see ``interp.interventions.expert_constraint``.
        layers, targets: only projections in these layers, or with these names (``attn.q``,
            ``q_proj``); by default all.
        together: one intervention for the expert with the same number in all of them.
        method: ``exact`` (one run an expert) or ``attribution`` (first order, one backward pass).
        budget: run at most so many experts, those with the largest estimate in any task.
        greedy: accuracy is that of the greedy answer, scored as in training (slow; needs
            ``Example``), not whether every token of the right answer is the most likely one.
        seed: of the intervals and tests.
        stages: where estimates and runs are done, and kept; by default here, at once.

    Raises:
        UserError: a model without experts, a task without examples, a name that is unknown, or
            arguments that do not go together.
    """
    _check(tasks, mode=mode, method=method, budget=budget, greedy=greedy)
    chosen = _chosen(projections_of(model), layers, targets)
    examples = [(task, example) for task, some in tasks.items() for example in some]
    encoded = tuple(
        example if isinstance(example, EncodedExample) else encode_example(model.tokenizer, example)
        for _, example in examples
    )
    job = ExpertJob(encoded, chosen, mode, factor, together)
    # The effects are those of the hooked model, in its own number type.
    resolution = precision_of(dtype_of(model)).resolution
    result = partial(_result, examples, job, seed=seed, resolution=resolution)
    run = partial(stages.run, model=model, progress=progress)
    projections, estimate = None if together else chosen, None
    if method == "attribution" or budget is not None:
        found = run(estimate_experts, job=job, description="gradients", output=ESTIMATED).tensors
        loss, changes = found["loss"], found["changes"]
        estimate = result(values=changes, corrupted=loss, metric=_LOSS, method="attribution")
        if budget is None:
            return ExpertEffects(estimate, projections=projections)
        job = replace(job, units=most_promising(changes, estimate.templates, budget))
    found = run(measure_experts, job=job, description=f"experts, {mode}", output=MEASURED).tensors
    (loss, right), (changes, right_changes) = (found[key].unbind(1) for key in ("bare", "changes"))
    metric = "accuracy (teacher-forced)"
    if greedy:
        questions = [example for _, example in examples if isinstance(example, Example)]
        right, right_changes = greedy_accuracy(model, job, questions, progress=progress)
        metric = "accuracy (greedy)"
    return ExpertEffects(
        loss=result(values=changes, corrupted=loss, metric=_LOSS, method="exact"),
        accuracy=result(values=right_changes, corrupted=right, metric=metric, method="exact"),
        estimate=estimate,
        projections=projections,
    )


def _result(
    examples: Sequence[tuple[str, Example | EncodedExample]], job: ExpertJob, **values: Any
) -> PatchEffects:
    """Effects of the job's interventions on these examples."""
    names = [EVERYWHERE] if job.together else [part.name for part in job.projections]
    return PatchEffects(
        axes=("prompt", "projection", "expert"),
        component="expert gate",
        source=f"scale {job.factor:g}" if job.mode == "scale" else job.mode,
        labels={"projection": tuple(names)},
        # Resampled together: the questions of one subject.
        groups=tuple(
            f"{task}/{example.subject if isinstance(example, Example) else index}"
            for index, (task, example) in enumerate(examples)
        ),
        templates=tuple(task for task, _ in examples),
        **values,
    )


def _chosen(
    projections: tuple[AdaptedProjection, ...],
    layers: Iterable[int] | None,
    targets: Sequence[str] | None,
) -> tuple[AdaptedProjection, ...]:
    wanted = None if layers is None else set(layers)
    for target in targets or ():
        if not any(projection.has_target(target) for projection in projections):
            find_projection(projections, target)  # raises, and lists the known
    found = tuple(
        projection
        for projection in projections
        if (wanted is None or projection.layer in wanted)
        and (targets is None or any(map(projection.has_target, targets)))
    )
    if not found:
        raise UserError("no adapted projection is in these layers and of these targets")
    return found


def _check(tasks: Tasks, *, mode: str, method: str, budget: int | None, greedy: bool) -> None:
    check_choice("mode", mode, get_args(EffectMode))
    check_choice("method", method, get_args(EffectMethod))
    if not tasks:
        raise UserError("there are no tasks: give at least one, with examples")
    for task, some in tasks.items():
        if not some:
            raise UserError(f"task {task!r} has no examples")
        if greedy and not all(isinstance(example, Example) for example in some):
            raise UserError("greedy answers are scored against an Example, not its tokens")
    if budget is not None and (budget < 1 or method != "exact"):
        raise UserError("a budget is a number of experts to run, for method 'exact'")
    if greedy and method != "exact":
        raise UserError("greedy answers need method 'exact'")
