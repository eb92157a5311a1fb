"""What each expert does for each task: interventions on its gate, and what becomes of the answers.

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
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

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
from interp.figures.expert_effects import effects_figure
from interp.jobs import RUN_HERE, JobRunner
from interp.models.hooked_model import HookedModel
from interp.moelora.data.encoding import EncodedExample, encode_example
from interp.moelora.data.examples import Example
from interp.moelora.projections import Projection, find_projection, projections_of
from interp.patching.result import PatchEffects
from interp.precision import dtype_of, precision_of
from interp.statistics.significance import MINIMUM_GROUPS, EffectStatistics, q_values

EffectMethod = Literal["exact", "attribution"]
EffectMode = Literal["off", "off_renormalised", "force", "scale"]
Tasks = Mapping[str, Sequence[Example | EncodedExample]]
EVERYWHERE = "everywhere"
"""Names the one place of experts that are taken together across projections."""
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
    projections: tuple[Projection, ...] | None = None

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
        order = np.argsort(-table["effect"].to_numpy(), kind="stable")
        return table.iloc[order].reset_index(drop=True)

    def _of_task(self, task: str) -> pd.DataFrame:
        result = self.of(task)
        mean = result.group_mean
        statistics: EffectStatistics | None = None
        if len(set(result.groups)) >= MINIMUM_GROUPS:
            statistics = result.statistics
        change = None if self.accuracy is None else self.of(task, what="accuracy").group_mean
        rows = []
        for (place, expert), effect in np.ndenumerate(mean):
            if np.isnan(effect):
                continue
            row: dict[str, Any] = self._name(place) | {"expert": expert, "task": task}
            row["effect"] = effect
            for name in ("ci_low", "ci_high", "p_value"):
                row[name] = (
                    np.nan if statistics is None else getattr(statistics, name)[place, expert]
                )
            row["accuracy_change"] = np.nan if change is None else change[place, expert]
            rows.append(row | {"n": len(result)})
        return pd.DataFrame(rows)

    def _name(self, place: int) -> dict[str, Any]:
        if self.projections is None:
            return {"projection": EVERYWHERE, "layer": -1, "target": EVERYWHERE}
        one = self.projections[place]
        layer = -1 if one.layer is None else one.layer
        return {
            "projection": one.name,
            "layer": layer,
            "target": one.module.rpartition(".")[2],
        }

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
    _check(tasks, mode, method, budget, greedy)
    chosen = _chosen(projections_of(model), layers, targets)
    examples = [(task, one) for task, some in tasks.items() for one in some]
    encoded = tuple(_encoded(model, one) for _, one in examples)
    job = ExpertJob(encoded, chosen, mode, factor, together)
    # The effects are those of the hooked model, in its own number type.
    resolution = precision_of(dtype_of(model)).resolution
    common = {**_common(examples, job, seed), "resolution": resolution}

    def result(values: Tensor, base: Tensor, metric: str, how: str = "exact") -> PatchEffects:
        return PatchEffects(values=values, corrupted=base, metric=metric, method=how, **common)

    places = None if together else chosen
    estimate = None
    if method == "attribution" or budget is not None:
        done = stages.made(
            estimate_experts,
            model,
            job,
            description="gradients",
            gives=ESTIMATED,
            progress=progress,
        ).tensors
        estimate = result(done["changes"], done["loss"], _LOSS, "attribution")
        if budget is None:
            return ExpertEffects(estimate, projections=places)
        job = replace(job, units=most_promising(estimate.values, estimate.templates, budget))
    done = stages.made(
        measure_experts,
        model,
        job,
        description=f"experts, {mode}",
        gives=MEASURED,
        progress=progress,
    ).tensors
    base, changes = done["bare"].unbind(1), done["changes"].unbind(1)
    right, how = (base[1], changes[1]), "accuracy (teacher-forced)"
    if greedy:
        asked = [one for _, one in examples if isinstance(one, Example)]
        right, how = greedy_accuracy(model, job, asked, progress=progress), "accuracy (greedy)"
    return ExpertEffects(
        loss=result(changes[0], base[0], _LOSS),
        accuracy=result(right[1], right[0], how),
        estimate=estimate,
        projections=places,
    )


def _common(
    examples: Sequence[tuple[str, Example | EncodedExample]],
    job: ExpertJob,
    seed: int,
) -> dict[str, Any]:
    """What all results of a call say."""
    places = (EVERYWHERE,) if job.together else tuple(one.name for one in job.projections)
    return {
        "axes": ("prompt", "projection", "expert"),
        "component": "expert gate",
        "source": f"scale {job.factor:g}" if job.mode == "scale" else job.mode,
        "labels": {"projection": places},
        "groups": tuple(_subject(index, *one) for index, one in enumerate(examples)),
        "templates": tuple(task for task, _ in examples),
        "seed": seed,
    }


def _chosen(
    projections: tuple[Projection, ...],
    layers: Iterable[int] | None,
    targets: Sequence[str] | None,
) -> tuple[Projection, ...]:
    wanted = None if layers is None else set(layers)
    for target in targets or ():
        if not any(one.has_target(target) for one in projections):
            find_projection(projections, target)
    found = tuple(
        one
        for one in projections
        if (wanted is None or one.layer in wanted)
        and (targets is None or any(one.has_target(target) for target in targets))
    )
    if not found:
        raise UserError("no adapted projection is in these layers and of these targets")
    return found


def _check(tasks: Tasks, mode: str, method: str, budget: int | None, greedy: bool) -> None:
    if mode not in get_args(EffectMode):
        raise UserError(f"unknown mode {mode!r}; known: {', '.join(get_args(EffectMode))}")
    if method not in get_args(EffectMethod):
        raise UserError(f"unknown method {method!r}; known: {', '.join(get_args(EffectMethod))}")
    if not tasks:
        raise UserError("there are no tasks: give at least one, with examples")
    for task, some in tasks.items():
        if not some:
            raise UserError(f"task {task!r} has no examples")
        if greedy and not all(isinstance(one, Example) for one in some):
            raise UserError("greedy answers are scored against an Example, not its tokens")
    if budget is not None and (budget < 1 or method != "exact"):
        raise UserError("a budget is a number of experts to run, for method 'exact'")
    if greedy and method != "exact":
        raise UserError("greedy answers need method 'exact'")


def _encoded(model: HookedModel, example: Example | EncodedExample) -> EncodedExample:
    if isinstance(example, EncodedExample):
        return example
    return encode_example(model.tokenizer, example)


def _subject(index: int, task: str, example: Example | EncodedExample) -> str:
    """What is resampled together: the questions of one subject."""
    return f"{task}/{example.subject if isinstance(example, Example) else index}"
