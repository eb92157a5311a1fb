"""Is a head's mean effect more than chance? Intervals, p-values and the false-discovery rate.

Questions about one subject are not independent, so the unit is the subject: effects are averaged
over a subject's questions first, and subjects are resampled. Per head:

* a percentile bootstrap interval of the mean over subjects;
* a two-sided sign-flip test: were the effect symmetric about zero, flipping subjects' signs at
  random would give a mean as large as often as p says;
* Benjamini–Hochberg q-values over all heads of a site.

With n subjects a sign-flip p-value cannot fall below 2/2ⁿ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import bootstrap, false_discovery_control, permutation_test
from torch import Tensor

from interp.errors import UserError

MINIMUM_SUBJECTS = 6
BOOTSTRAP_RESAMPLES = 2000
SIGN_FLIPS = 20_000
RESOLUTION = 2e-4
"""Effects smaller than this (logits) are rounding, and count as none: the order of a batch alone
moves the float32 logits of a 135M model by up to 7e-5, and an effect is a difference of two."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class HeadStatistics:
    """Per head: mean over subjects, its interval, p-value and q-value, each [layer head]."""

    mean: Float[np.ndarray, "layer head"]
    ci_low: Float[np.ndarray, "layer head"]
    ci_high: Float[np.ndarray, "layer head"]
    p_value: Float[np.ndarray, "layer head"]
    q_value: Float[np.ndarray, "layer head"]


def subject_means(
    values: Float[Tensor, "prompt layer head"], subjects: Sequence[str]
) -> Float[np.ndarray, "subject layer head"]:
    """Effects averaged over each subject's prompts, subjects in order of first appearance."""
    if len(subjects) != len(values):
        raise UserError(f"{len(values)} prompts but {len(subjects)} subjects")
    order = {subject: index for index, subject in enumerate(dict.fromkeys(subjects))}
    index = torch.tensor([order[subject] for subject in subjects])
    sums = torch.zeros(len(order), *values.shape[1:], dtype=torch.float64)
    sums.index_add_(0, index, values.double())
    counts = torch.bincount(index, minlength=len(order))
    return (sums / counts[:, None, None]).numpy()


def head_statistics(
    values: Float[Tensor, "prompt layer head"], subjects: Sequence[str], *, seed: int = 0
) -> HeadStatistics:
    """Interval, p- and q-value of every head's mean effect (see the module's text).

    Raises:
        UserError: fewer than ``MINIMUM_SUBJECTS`` subjects, or an effect that is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError("some effects are not finite: statistics need every head and prompt")
    units = subject_means(values, subjects)
    units = np.where(np.abs(units) < RESOLUTION, 0.0, units)
    n_subjects, n_layers, n_heads = units.shape
    if n_subjects < MINIMUM_SUBJECTS:
        raise UserError(
            f"statistics over {n_subjects} subjects say nothing: at least {MINIMUM_SUBJECTS} needed"
        )
    flat = units.reshape(n_subjects, -1)
    low, high = _interval(flat, seed)
    p_value = _sign_flip(flat, seed)
    q_value = false_discovery_control(p_value)
    shape = (n_layers, n_heads)
    return HeadStatistics(
        mean=flat.mean(axis=0).reshape(shape),
        ci_low=low.reshape(shape),
        ci_high=high.reshape(shape),
        p_value=p_value.reshape(shape),
        q_value=q_value.reshape(shape),
    )


def _interval(units: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    result = bootstrap(
        (units,),
        np.mean,
        axis=0,
        method="percentile",
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=CONFIDENCE,
        batch=100,
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def _sign_flip(units: np.ndarray, seed: int) -> np.ndarray:
    constant = np.all(units == 0, axis=0)
    result = permutation_test(
        (units,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=200,
        axis=0,
        rng=np.random.default_rng(seed),
    )
    # A head without any effect is not evidence of anything; rounding must not say otherwise.
    return np.where(constant, 1.0, np.clip(result.pvalue, 0.0, 1.0))


def mean_interval(
    values: Sequence[float] | np.ndarray, subjects: Sequence[str], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over prompts with a percentile interval from resampling subjects.

    All prompts weigh alike; a resample takes whole subjects with all their prompts.
    """
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return float("nan"), float("nan"), float("nan")
    order = {subject: index for index, subject in enumerate(dict.fromkeys(subjects))}
    index = np.array([order[subject] for subject in subjects])
    sums = np.bincount(index, weights=data, minlength=len(order))
    counts = np.bincount(index, minlength=len(order)).astype(float)
    mean = float(data.mean())
    if len(order) < 2:
        return mean, mean, mean
    result = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return mean, float(interval.low), float(interval.high)
