"""Statistics of heads' mean effects over subjects: questions about one are not independent."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.statistics.significance import RESOLUTION, EffectStatistics, effect_statistics

HeadStatistics = EffectStatistics
"""Per head: mean over subjects, its interval, p-value and q-value, each [layer head]."""


def edited_heads(values: Float[Tensor, "prompt layer head"]) -> Bool[Tensor, "layer head"]:
    """Which heads were edited: those whose effects are not NaN in every prompt."""
    return ~values.isnan().all(dim=0)


@checked
def head_statistics(
    values: Float[Tensor, "prompt layer head"],
    subjects: Sequence[str],
    *,
    relations: Sequence[str] = (),
    seed: int = 0,
    resolution: float = RESOLUTION,
) -> HeadStatistics:
    """Interval, p- and q-value of every head's mean effect; see `effect_statistics`.

    A head that is NaN in every prompt was not edited, and has NaN statistics.

    Args:
        relations: the relation of each prompt, where subjects are resampled within them.

    Raises:
        UserError: fewer than six subjects, or an effect that is not finite in a head that was
            edited.
    """
    if not bool(torch.isfinite(values[:, edited_heads(values)]).all()):
        raise UserError("some effects are not finite: statistics need every prompt of a head")
    return effect_statistics(
        values, subjects, strata=relations, seed=seed, resolution=resolution, what="subjects"
    )
