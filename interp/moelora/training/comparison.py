"""What several methods over several seeds say: means, intervals, differences from LoRA.

Two intervals stand beside every mean. Over *seeds*: Student's t interval of the runs' means, which
with three seeds is wide, and honest about that. Over *questions*: the questions' mean over seeds,
whole subjects resampled, which says nothing of other seeds. Differences are paired, by seed or by
question.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from interp.errors import UserError
from interp.moelora.training.scoring import mean_by_task

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
    """The content of comparison.json: by method and task what the module's text says.

    Raises `UserError` if the runs did not answer the same questions with the same seeds.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    if not methods:
        raise UserError("there are no runs to compare")
    by_method = {name: _of_method(runs, name) for name in methods}
    _check_paired(by_method)
    content: dict[str, Any] = {
        "methods": {name: _summary(of_method) for name, of_method in by_method.items()}
    }
    if REFERENCE in by_method:
        content["differences"] = {
            name: _difference(of_method, by_method[REFERENCE])
            for name, of_method in by_method.items()
            if name != REFERENCE
        }
    return content


def _of_method(runs: Sequence[FinishedRun], method: str) -> list[FinishedRun]:
    return sorted((run for run in runs if run.method == method), key=lambda run: run.seed)


def _check_paired(by_method: Mapping[str, Sequence[FinishedRun]]) -> None:
    questions = {
        tuple((row["task"], row["prompt"]) for row in run.answers)
        for of_method in by_method.values()
        for run in of_method
    }
    seeds = {tuple(run.seed for run in of_method) for of_method in by_method.values()}
    if len(questions) > 1:
        raise UserError("the runs answered different questions: compare runs of one comparison")
    if len(seeds) > 1:
        raise UserError("the methods were trained with different seeds: finish all runs first")


def _summary(of_method: Sequence[FinishedRun]) -> dict[str, Any]:
    first = of_method[0]
    per_question = _mean_over_seeds(of_method)
    accuracy = {}
    for one in mean_by_task(per_question, *_tasks_and_subjects(first)):
        of_seeds = [run.accuracy(one.task) for run in of_method]
        mean, low, high = seed_interval(of_seeds)
        accuracy[one.task] = {
            "n": one.n,
            "mean": mean,
            # No accuracy lies outside [0, 1], though a t interval may.
            "seeds": [max(low, 0.0), min(high, 1.0)] if len(of_seeds) > 1 else None,
            "questions": [one.ci_low, one.ci_high],
            "by_seed": of_seeds,
        }
    losses = {
        task: _with_interval([run.metrics["held_out_loss"][task] for run in of_method])
        for task in first.metrics["held_out_loss"]
    }
    return {
        "trainable_parameters": first.metrics["trainable_parameters"],
        "seeds": [run.seed for run in of_method],
        "steps": first.metrics["steps"],
        "seconds_per_step": float(
            np.median([run.metrics["seconds_per_step"] for run in of_method])
        ),
        "accuracy": accuracy,
        "held_out_loss": losses,
        "experts": _experts(of_method),
    }


def _experts(of_method: Sequence[FinishedRun]) -> dict[str, Any] | None:
    """How the experts were used at the end of training, and how alike they are; None for LoRA."""
    if "dead_experts" not in of_method[0].metrics["last_step"]:
        return None
    found: dict[str, Any] = {
        name: [run.metrics["last_step"][name] for run in of_method]
        for name in ("dead_experts", "load_smallest", "load_largest")
    }
    cosines = [run.metrics.get("expert_cosine") for run in of_method]
    found["cosine"] = _with_interval([one for one in cosines if one is not None])
    return found


def _difference(
    of_method: Sequence[FinishedRun], reference: Sequence[FinishedRun]
) -> dict[str, Any]:
    """Accuracy less LoRA's, paired."""
    tasks, subjects = _tasks_and_subjects(reference[0])
    gains = np.subtract(_mean_over_seeds(of_method), _mean_over_seeds(reference)).tolist()
    found = {}
    for one in mean_by_task(gains, tasks, subjects):
        by_seed = [
            run.accuracy(one.task) - other.accuracy(one.task)
            for run, other in zip(of_method, reference, strict=True)
        ]
        mean, low, high = seed_interval(by_seed)
        found[one.task] = {
            "mean": mean,
            "seeds": _ends(low, high),
            "questions": [one.ci_low, one.ci_high],
            "by_seed": by_seed,
        }
    return found


def _mean_over_seeds(of_method: Sequence[FinishedRun]) -> list[float]:
    return np.mean([run.right for run in of_method], axis=0).tolist()


def _tasks_and_subjects(run: FinishedRun) -> tuple[list[str], list[str]]:
    return [row["task"] for row in run.answers], [row["subject"] for row in run.answers]


def _with_interval(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    mean, low, high = seed_interval(values)
    return {"mean": mean, "seeds": _ends(low, high), "by_seed": list(values)}


def _ends(low: float, high: float) -> list[float] | None:
    """An interval's ends; None where there was only one seed."""
    return None if math.isnan(low) else [low, high]
