"""Comparison of methods over several seeds: means, intervals, differences from LoRA.

Two intervals stand beside every mean. Over *seeds*: Student's t interval of the runs' means, which
with three seeds is wide. Over *questions*: the questions' mean over seeds,
whole subjects resampled, which says nothing of other seeds. Differences are paired, by seed or by
question.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.lazy import stats
from interp.moelora.training.scoring import Accuracy, mean_by_task

CONFIDENCE = 0.95
REFERENCE = "lora"


@dataclass(frozen=True)
class FinishedRun:
    """One trained adapter: its metrics.json, its answers in order, and its logged steps."""

    method: str
    seed: int
    metrics: Mapping[str, Any]
    answers: Sequence[Mapping[str, Any]]
    losses: Sequence[Mapping[str, Any]]

    @property
    def right(self) -> list[float]:
        """1 for each question answered rightly, 0 for the others."""
        return [float(row["right"]) for row in self.answers]

    def accuracy(self, task: str) -> float:
        """The accuracy in a task, or the mean over tasks."""
        return float(self.metrics["accuracy"][task]["value"])


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with Student's t interval; without ends (NaN) for a single value."""
    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    if len(data) < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(data) - 1) * data.std(ddof=1) / len(data) ** 0.5
    return mean, mean - float(half), mean + float(half)


def compare(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """The content of comparison.json: means, intervals and differences, by method and task.

    Raises `UserError` if the runs did not answer the same questions with the same seeds.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    if not methods:
        raise UserError("there are no runs to compare")
    by_method = {
        name: sorted((run for run in runs if run.method == name), key=lambda run: run.seed)
        for name in methods
    }
    _check_paired(by_method)
    content: dict[str, Any] = {
        "methods": {name: _summary(of_method) for name, of_method in by_method.items()}
    }
    if REFERENCE in by_method:
        content["differences"] = {
            name: paired_difference(of_method, by_method[REFERENCE])
            for name, of_method in by_method.items()
            if name != REFERENCE
        }
    return content


def finished_seeds(runs: Sequence[FinishedRun], methods: Sequence[str]) -> tuple[int, ...]:
    """The seeds with which every one of `methods` has a run, ascending.

    Of an unfinished comparison, the runs of these seeds are a comparison of their own.
    """
    by_method = [{run.seed for run in runs if run.method == method} for method in methods]
    return tuple(sorted(set.intersection(*by_method))) if by_method else ()


def joined(parts: Sequence[FinishedRun]) -> FinishedRun:
    """Several trainings of one method and seed, on different tasks, as one; without logged steps.

    Its accuracies are by task, and over all tasks, each with the same weight.
    """
    answers = [row for part in parts for row in part.answers]
    right = [float(row["right"]) for row in answers]
    tasks, subjects = [row["task"] for row in answers], [row["subject"] for row in answers]
    scores = mean_by_task(right, tasks, subjects)
    accuracy = {score.task: {"value": score.value} for score in scores}
    return FinishedRun(parts[0].method, parts[0].seed, {"accuracy": accuracy}, answers, ())


def _check_paired(by_method: Mapping[str, Sequence[FinishedRun]]) -> None:
    runs = [run for of_method in by_method.values() for run in of_method]
    if len({tuple((row["task"], row["prompt"]) for row in run.answers) for run in runs}) > 1:
        raise UserError("the runs answered different questions: compare runs of one comparison")
    if len({tuple(run.seed for run in of_method) for of_method in by_method.values()}) > 1:
        raise UserError("the methods were trained with different seeds: finish all runs first")


def _summary(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """A method's means over its seeds, with both intervals."""
    first = runs[0].metrics
    accuracy = {}
    for score in _by_question(runs[0], _mean_over_seeds(runs)):
        found = _with_interval([run.accuracy(score.task) for run in runs])
        if found["seeds"]:  # no accuracy lies outside [0, 1], though a t interval may
            found["seeds"] = [max(found["seeds"][0], 0.0), min(found["seeds"][1], 1.0)]
        ends = [score.ci_low, score.ci_high]
        accuracy[score.task] = {"n": score.n, **found, "questions": ends}
    return {
        "trainable_parameters": first["trainable_parameters"],
        "seeds": [run.seed for run in runs],
        "steps": first["steps"],
        "seconds_per_step": float(np.median([run.metrics["seconds_per_step"] for run in runs])),
        "accuracy": accuracy,
        "held_out_loss": {
            task: _with_interval([run.metrics["held_out_loss"][task] for run in runs])
            for task in first["held_out_loss"]
        },
        "experts": _experts(runs),
    }


def _experts(runs: Sequence[FinishedRun]) -> dict[str, Any] | None:
    """How the experts were used at the end of training, and how alike they are; None for LoRA."""
    last = [run.metrics["last_step"] for run in runs]
    if "dead_experts" not in last[0]:
        return None
    names = ("dead_experts", "load_smallest", "load_largest")
    cosines = [run.metrics.get("expert_cosine") for run in runs]
    known = [cosine for cosine in cosines if cosine is not None]
    usage: dict[str, Any] = {name: [step[name] for step in last] for name in names}
    return {**usage, "cosine": _with_interval(known) if known else None}


def paired_difference(
    runs: Sequence[FinishedRun], reference: Sequence[FinishedRun]
) -> dict[str, Any]:
    """By task, the accuracy of runs less that of the reference's runs, by seed and by question.

    Both are sorted by seed. Raises `UserError` if seeds or questions differ.
    """
    _check_paired({"": runs, "reference": reference})
    gains = np.subtract(_mean_over_seeds(runs), _mean_over_seeds(reference)).tolist()
    found = {}
    for gain in _by_question(reference[0], gains):
        pairs = zip(runs, reference, strict=True)
        by_seed = [run.accuracy(gain.task) - other.accuracy(gain.task) for run, other in pairs]
        found[gain.task] = {**_with_interval(by_seed), "questions": [gain.ci_low, gain.ci_high]}
    return found


def _mean_over_seeds(runs: Sequence[FinishedRun]) -> list[float]:
    return np.mean([run.right for run in runs], axis=0).tolist()


def _by_question(run: FinishedRun, values: Sequence[float]) -> tuple[Accuracy, ...]:
    """The means by task of a value of each question that a run answered."""
    tasks = [row["task"] for row in run.answers]
    return mean_by_task(values, tasks, [row["subject"] for row in run.answers])


def _with_interval(by_seed: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its interval, which is None for a single seed."""
    mean, low, high = seed_interval(by_seed)
    ends = None if math.isnan(low) else [low, high]
    return {"mean": mean, "seeds": ends, "by_seed": list(by_seed)}
