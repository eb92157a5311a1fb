"""Delete-a-group jackknife intervals."""

from typing import Any

import numpy as np
from jaxtyping import Float

from interp.lazy import stats

CONFIDENCE = 0.95


def jackknife(
    value: float | Float[np.ndarray, "..."], without: Float[np.ndarray, "fold ..."]
) -> tuple[Any, Any]:
    """The 95 % jackknife interval of a value, from its values without each fold.

    ``value ± t₀.₉₇₅(F − 1) · √( (F − 1)/F · Σ_f (θ₋f − θ̄)² )`` for F folds. NaN where the
    value without a fold is NaN.
    """
    folds = len(without)
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, folds - 1)
    error = quantile * np.sqrt((folds - 1) / folds * spread)
    return value - error, value + error
