"""Effects by layer: the sum of a layer's heads, with an interval.

Each prompt's effects are summed over the layer's heads, and the mean over subjects has a 95 %
interval from resampling subjects. Heads were edited one by one, so this is the sum of single
effects, not the effect of editing the layer: heads that make up for each other count twice.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.arguments import shown
from interp.checked import checked
from interp.errors import UserError
from interp.heads.significance import mean_interval

if TYPE_CHECKING:
    from interp.heads.effects import HeadEffects


@checked
def effects_by_layer(effects: "HeadEffects", *, fdr: float = 0.05) -> pd.DataFrame:
    """One row a layer: ``layer``, ``effect``, ``ci_low``, ``ci_high`` (logits), ``significant``.

    ``significant`` counts the heads with q ≤ ``fdr``. Heads that were not edited count as nothing.
    """
    if not hasattr(effects, "statistics"):
        raise UserError(f"effects are HeadEffects, not {shown(effects)}: locate_heads gives them")
    sums = np.nansum(effects.values.double().numpy(), axis=2)
    significant = (effects.statistics.q_value <= fdr).sum(axis=1)
    rows = [
        (layer, *mean_interval(sums[:, layer], effects.subjects, seed=effects.seed), int(count))
        for layer, count in enumerate(significant)
    ]
    return pd.DataFrame(rows, columns=["layer", "effect", "ci_low", "ci_high", "significant"])
