"""Is a head's mean effect more than chance? The statistics of ``interp.statistics.significance``.

Questions about one subject are not independent, so the groups that are averaged and resampled are
the subjects.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.statistics.significance import (
    BOOTSTRAP_RESAMPLES,
    CONFIDENCE,
    RESOLUTION,
    SIGN_FLIPS,
    EffectStatistics,
    effect_statistics,
    group_means,
    mean_interval,
)
from interp.statistics.significance import MINIMUM_GROUPS as MINIMUM_SUBJECTS

__all__ = [
    "BOOTSTRAP_RESAMPLES",
    "CONFIDENCE",
    "MINIMUM_SUBJECTS",
    "RESOLUTION",
    "SIGN_FLIPS",
    "HeadStatistics",
    "head_statistics",
    "mean_interval",
    "subject_means",
]


HeadStatistics = EffectStatistics
"""Per head: mean over subjects, its interval, p-value and q-value, each [layer head]."""


def subject_means(
    values: Float[Tensor, "prompt layer head"], subjects: Sequence[str]
) -> Float[np.ndarray, "subject layer head"]:
    """Effects averaged over each subject's prompts, subjects in order of first appearance."""
    return group_means(values, subjects, what="subjects")


@checked
def head_statistics(
    values: Float[Tensor, "prompt layer head"],
    subjects: Sequence[str],
    *,
    seed: int = 0,
    resolution: float = RESOLUTION,
) -> HeadStatistics:
    """Interval, p- and q-value of every head's mean effect, by `effect_statistics`.

    Raises:
        UserError: fewer than ``MINIMUM_SUBJECTS`` subjects, or an effect that is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError("some effects are not finite: statistics need every head and prompt")
    return effect_statistics(values, subjects, seed=seed, resolution=resolution, what="subjects")
