"""Treatments side by side: what each gains on false premises, and what it costs where all is well.

* ``gain``: rise of preference accuracy on false premises;
* ``share``: that gain as a share of another treatment's (the constraint at the known object);
* ``cost``: fall of preference accuracy on the true-premise twins;
* ``cost_p_true``: fall of P(true object) on the twins;
* ``unchanged``: share of the twins' greedy answers that are word for word the untreated ones;
* ``seconds``: seconds per true-premise question, answered in batches.

All against the untreated model on the same prompts, with 95 % intervals from resampling subjects.
Where a treatment has several random draws, a prompt's figure is the mean over them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import UserError
from interp.evaluation.baselines.method_score import KINDS, TreatmentScore
from interp.evaluation.preference import Preference
from interp.heads.significance import BOOTSTRAP_RESAMPLES, CONFIDENCE, mean_interval
from interp.premises.questions import QuestionKind
from interp.statistics.resampling import group_draws, resamples_at_once
from interp.statistics.significance import group_order

MEASURES = ("gain", "share", "cost", "cost_p_true", "unchanged")


def pool(scores: Sequence[TreatmentScore]) -> TreatmentScore:
    """One treatment's scores on several sets of premises (say, seeds), prompts one after another.

    Raises UserError for scores of different treatments, or with different numbers of draws.
    """
    if len({score.name for score in scores}) != 1:
        names = ", ".join(dict.fromkeys(score.name for score in scores)) or "none"
        raise UserError(f"only scores of one treatment can be pooled, not {names}")
    if len({score.of(kind).logit_difference.shape[1] for score in scores for kind in KINDS}) != 1:
        raise UserError(f"the scores of {scores[0].name!r} have different numbers of random draws")
    answered: list[QuestionKind] = [
        kind for kind in KINDS if all(kind in score.answers for score in scores)
    ]
    detected: list[QuestionKind] = [
        kind for kind in KINDS if all(kind in score.detections for score in scores)
    ]
    sizes = [len(score.false.subjects) for score in scores]
    return TreatmentScore(
        name=scores[0].name,
        false=_joined([score.false for score in scores]),
        twin=_joined([score.twin for score in scores]),
        answers={k: tuple(a for score in scores for a in score.answers[k]) for k in answered},
        seconds={
            kind: float(np.average([score.seconds[kind] for score in scores], weights=sizes))
            for kind in answered
        },
        detections={k: tuple(d for score in scores for d in score.detections[k]) for k in detected},
    )


def _joined(parts: Sequence[Preference]) -> Preference:
    return Preference(
        np.concatenate([part.logit_difference for part in parts]),
        np.concatenate([part.p_true for part in parts]),
        np.concatenate([part.p_false for part in parts]),
        tuple(subject for part in parts for subject in part.subjects),
        tuple(template for part in parts for template in part.templates),
    )


def treatment_table(
    scores: Sequence[TreatmentScore], *, untreated: str, oracle: str, seed: int = 0
) -> pd.DataFrame:
    """One row a treatment: every measure with its ``_low`` and ``_high``, ``n`` and ``seconds``.

    Args:
        untreated, oracle: the names of the scores that the others are measured against.

    Raises:
        UserError: a name that no score has, or scores of different prompts.
    """
    by_name = {score.name: score for score in scores}
    for name in (untreated, oracle):
        if name not in by_name:
            raise UserError(f"there is no score named {name!r}; there are: {', '.join(by_name)}")
    base = by_name[untreated]
    subjects = base.false.subjects
    for score in scores:
        if any(score.of(kind).subjects != base.of(kind).subjects for kind in KINDS):
            raise UserError(f"{score.name!r} and {untreated!r} were scored on different prompts")
    of_oracle = _prefers(by_name[oracle].false) - _prefers(base.false)
    rows = []
    for score in scores:
        gain = _prefers(score.false) - _prefers(base.false)
        measured = {
            "gain": mean_interval(gain, subjects, seed=seed),
            "share": ratio_interval(gain, of_oracle, subjects, seed=seed),
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


def _unchanged(
    score: TreatmentScore, base: TreatmentScore, seed: int
) -> tuple[float, float, float]:
    """Share of the twins' answers that are the untreated ones; NaN where there are no answers."""
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

    All NaN where ``whole`` sums to nothing. A resample in which it does is left out.
    """
    index = group_order(subjects, len(part), "subjects")
    parts, wholes = np.bincount(index, weights=part), np.bincount(index, weights=whole)
    if wholes.sum() == 0:
        return float("nan"), float("nan"), float("nan")
    ratio = float(parts.sum() / wholes.sum())
    if len(parts) < 2:
        return ratio, ratio, ratio

    # Not scipy's bootstrap, which warns of resamples in which the ratio does not exist.
    size = resamples_at_once(len(parts), BOOTSTRAP_RESAMPLES)
    draws = group_draws(
        len(parts), BOOTSTRAP_RESAMPLES, size, generator=np.random.default_rng(seed)
    )
    both = np.stack([parts, wholes], axis=1)
    above, below = np.concatenate([counts @ both for counts in draws]).T
    ratios = np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(ratios, [tail, 1 - tail])
    return ratio, float(low), float(high)
