"""Compare methods: their gain on false premises and their cost on true ones.

* ``gain``: rise of preference accuracy on false premises;
* ``share``: that gain as a share of the oracle's (the constraint at the known object);
* ``cost``: fall of preference accuracy on the true-premise twins;
* ``cost_p_true``: fall of P(true object) on the twins;
* ``unchanged``: share of the twins' greedy answers that equal those without an intervention;
* ``seconds``: seconds per true-premise question, answered in batches.

All are relative to the model without an intervention on the same prompts, with 95 % intervals from
resampling subjects. With several random draws, a prompt's value is the mean over them.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.errors import UserError
from interp.evaluation.baselines.method_score import KINDS, MethodScore
from interp.evaluation.preference import Preference
from interp.moved import old_arguments, old_names
from interp.premises.questions import QuestionKind
from interp.statistics.significance import group_order, mean_interval
from probes.scoring import resampled_interval

MEASURES = ("gain", "share", "cost", "cost_p_true", "unchanged")

__getattr__ = old_names(__name__)


def pool(scores: Sequence[MethodScore]) -> MethodScore:
    """Concatenate one method's scores on several sets of premises, such as seeds.

    Raises UserError for scores of different methods, or with different numbers of draws.
    """
    if len({score.name for score in scores}) != 1:
        names = ", ".join(dict.fromkeys(score.name for score in scores)) or "none"
        raise UserError(f"only scores of one method can be pooled, not {names}")
    if len({score.of(kind).logit_difference.shape[1] for score in scores for kind in KINDS}) != 1:
        raise UserError(f"the scores of {scores[0].name!r} have different numbers of random draws")

    def joined(name: str) -> dict[QuestionKind, tuple[Any, ...]]:
        by_kind = [getattr(score, name) for score in scores]
        return {
            kind: tuple(chain.from_iterable(entries[kind] for entries in by_kind))
            for kind in KINDS
            if all(kind in entries for entries in by_kind)
        }

    answers, sizes = joined("answers"), [len(score.false.subjects) for score in scores]
    seconds: dict[QuestionKind, float] = {
        kind: float(np.average([score.seconds[kind] for score in scores], weights=sizes))
        for kind in answers
    }
    return MethodScore(
        name=scores[0].name,
        false=Preference.joined([score.false for score in scores]),
        twin=Preference.joined([score.twin for score in scores]),
        answers=answers,
        seconds=seconds,
        detections=joined("detections"),
    )


@old_arguments(untreated="baseline")
def method_table(
    scores: Sequence[MethodScore], *, baseline: str, oracle: str, seed: int = 0
) -> pd.DataFrame:
    """One row a method: every measure with its ``_low`` and ``_high``, ``n`` and ``seconds``.

    The column ``treatment`` is the method's name.

    Args:
        baseline, oracle: the names of the scores that the others are measured against.

    Raises:
        UserError: a name that no score has, or scores of different prompts.
    """
    by_name = {score.name: score for score in scores}
    for name in (baseline, oracle):
        if name not in by_name:
            raise UserError(f"there is no score named {name!r}; there are: {', '.join(by_name)}")
    base = by_name[baseline]
    subjects = base.false.subjects
    for score in scores:
        if any(score.of(kind).subjects != base.of(kind).subjects for kind in KINDS):
            raise UserError(f"{score.name!r} and {baseline!r} were scored on different prompts")
    oracle_gain = _prefers(by_name[oracle].false) - _prefers(base.false)
    rows = []
    for score in scores:
        gain = _prefers(score.false) - _prefers(base.false)
        measured = {
            "gain": mean_interval(gain, subjects, seed=seed),
            "share": ratio_interval(gain, oracle_gain, subjects, seed=seed),
            "cost": mean_interval(_prefers(base.twin) - _prefers(score.twin), subjects, seed=seed),
            "cost_p_true": mean_interval(
                (base.twin.p_true - score.twin.p_true).mean(axis=1), subjects, seed=seed
            ),
            "unchanged": _unchanged(score, base, seed),
        }
        row: dict[str, object] = {"treatment": score.name, "n": len(subjects)}
        for name in MEASURES:
            keys = (name, f"{name}_low", f"{name}_high")
            row |= dict(zip(keys, measured[name], strict=True))
        rows.append(row | {"seconds": score.seconds.get("twin", float("nan"))})
    return pd.DataFrame(rows)


def _prefers(values: Preference) -> Float[np.ndarray, " prompt"]:
    """Per prompt, the share of draws in which the true object is preferred."""
    return (values.logit_difference > 0).mean(axis=1)


def _unchanged(score: MethodScore, base: MethodScore, seed: int) -> tuple[float, float, float]:
    """Share of the twins' answers that equal those without an intervention; NaN without answers."""
    if "twin" not in score.answers or "twin" not in base.answers:
        return float("nan"), float("nan"), float("nan")
    pairs = zip(score.answers["twin"], base.answers["twin"], strict=True)
    same = np.array([float(answer == plain) for answer, plain in pairs])
    return mean_interval(same, base.twin.subjects, seed=seed)


def ratio_interval(
    part: Float[np.ndarray, " prompt"],
    whole: Float[np.ndarray, " prompt"],
    subjects: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Sum of ``part`` over sum of ``whole``, with a percentile interval from resampling subjects.

    All are NaN where ``whole`` sums to zero. Resamples in which it does are left out.
    """
    index = group_order(subjects, len(part), "subjects")
    parts, wholes = np.bincount(index, weights=part), np.bincount(index, weights=whole)
    if wholes.sum() == 0:
        return float("nan"), float("nan"), float("nan")
    ratio = float(parts.sum() / wholes.sum())
    if len(parts) < 2:
        return ratio, ratio, ratio

    def ratios(counts: Int[np.ndarray, "resample group"]) -> Float[np.ndarray, " resample"]:
        above, below = (counts @ np.stack([parts, wholes], axis=1)).T
        return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)

    return ratio, *resampled_interval(len(parts), ratios, seed=seed)
