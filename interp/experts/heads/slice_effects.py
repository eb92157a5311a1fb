"""Causal effects of single experts in single heads.

Measured with the part of one head in one expert's output set to zero at every position
(`ExpertHeadContribution`):

* ``preference``: logit(true object) − logit(false object) without the slice, less the same with
  it. **Positive**: without it the answer is better, so the slice carried the false premise;
  negative: the slice helped to correct it.
* ``head_effect``, where asked for: the change of the head's own effect, which is that of editing it
  at the false object (`interp.heads.locate`): (logit difference without slice and head − without
  slice) − (without head − with everything). Negative: the head carries less of the false premise
  without what the expert adds.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.heads.slices import (
    NO_ABLATION,
    ExpertHeadContribution,
    group_size,
    sweep_ablations,
    without_slices,
)
from interp.figures.dots import dot_figure
from interp.heads.headset import Head, Site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import premise_edit
from interp.models.hooked_model import HookedModel
from interp.patching.metrics import LogitDifference
from interp.precision import dtype_of, precision_of
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind
from interp.statistics.significance import (
    MINIMUM_GROUPS,
    RESOLUTION,
    EffectStatistics,
    effect_statistics,
    group_means,
)


@dataclass(frozen=True, eq=False)
class SliceEffects(Displayed):
    """Effect of taking out each slice alone, per prompt, in logits.

    Attributes:
        slices: what was taken out.
        preference: Float[prompt slice].
        head_effect: Float[prompt slice], or None where it was not asked for.
        full: Float[prompt], the logit difference of the adapted model as it is.
        groups: of each prompt, what is resampled together.
    """

    slices: tuple[ExpertHeadContribution, ...]
    preference: Float[Tensor, "prompt slice"]
    full: Float[Tensor, " prompt"]
    groups: tuple[str, ...]
    head_effect: Float[Tensor, "prompt slice"] | None = None
    seed: int = 0
    resolution: float = RESOLUTION
    """Effects below this are rounding; they are of the hooked model, in its own number type."""

    def __post_init__(self) -> None:
        shape = (len(self.groups), len(self.slices))
        for values in (self.preference, self.head_effect):
            if values is not None and values.shape != shape:
                raise UserError(f"effects have shape {tuple(values.shape)}, not {shape}")

    @cached_property
    def statistics(self) -> EffectStatistics:
        """Of ``preference``. Raises UserError for fewer groups than ``MINIMUM_GROUPS``."""
        return effect_statistics(
            self.preference, self.groups, seed=self.seed, resolution=self.resolution
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a slice, largest absolute effect first.

        Columns: ``slice``, ``component``, ``layer``, ``unit``, ``expert``, ``effect`` (mean over
        groups), ``ci_low``, ``ci_high``, ``p_value``, ``q_value`` (NaN with too few groups),
        ``head_effect`` (mean over groups; NaN where not measured).
        """
        columns: dict[str, Any] = {"slice": [part.name for part in self.slices]}
        for name in ("component", "layer", "unit", "expert"):
            columns[name] = [getattr(part, name) for part in self.slices]
        enough = len(set(self.groups)) >= MINIMUM_GROUPS
        columns["effect"] = (
            self.statistics.mean if enough else _mean_over_groups(self.preference, self.groups)
        )
        for name in ("ci_low", "ci_high", "p_value", "q_value"):
            columns[name] = getattr(self.statistics, name) if enough else np.nan
        columns["head_effect"] = np.nan
        if self.head_effect is not None:
            columns["head_effect"] = _mean_over_groups(self.head_effect, self.groups)
        return pd.DataFrame(columns).sort_values(
            "effect", key=abs, ascending=False, kind="stable", ignore_index=True
        )

    def plot(self, count: int = 20) -> go.Figure:
        """The ``count`` largest effects with their intervals."""
        rows = self.to_dataframe().head(count)
        return dot_figure(
            rows["slice"],
            rows["effect"],
            low=rows["ci_low"],
            high=rows["ci_high"],
            line=0.0,
            title="effect on the logit difference (logits)",
        )

    def _shown(self) -> Shown:
        words = (
            f"Effect on the logit difference of taking out each of {len(self.slices)} expert parts "
            f"alone, {len(self.full)} prompts, in logits."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


def slice_effects(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    slices: Sequence[ExpertHeadContribution],
    *,
    head_effect: Site | None = None,
    kind: QuestionKind = "false",
    seed: int = 0,
    progress: bool = True,
) -> SliceEffects:
    """Take each slice out of an adapted model alone.

    Args:
        slices: such as ``rank_expert_contributions(...).slices(10)``.
        head_effect: measure the change of the heads' own effect at this site too (twice the
            runs); of a key/value slice, of all heads of its group together.

    Raises:
        UserError: no slices, or one that the model does not have.
    """
    if not slices:
        raise UserError("there are no slices to take out")
    encoded = as_encoded(model, premises)
    batch = encoded.batch(kind)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    ablations = [NO_ABLATION, *(without_slices(model, [part]) for part in slices)]
    (runs,) = sweep_ablations(
        model, batch, ablations, metrics=[metric], progress=progress, description="experts in heads"
    )
    preference, change = runs[:, 1:] - runs[:, :1], None
    if head_effect is not None:
        edit = premise_edit(model, encoded, kind, site=head_effect)
        change = torch.empty_like(preference)
        for heads, numbers in _by_heads(model, slices).items():
            some = [0, *(1 + number for number in numbers)]
            (edited,) = sweep_ablations(
                model,
                batch,
                [ablations[number] for number in some],
                metrics=[metric],
                edit=edit,
                heads=heads,
                progress=progress,
                description=f"head effect, layer {heads[0][0]}",
            )
            effects = edited - runs[:, some]
            change[:, numbers] = effects[:, 1:] - effects[:, :1]
    return SliceEffects(
        tuple(slices),
        preference,
        runs[:, 0],
        encoded.subjects,
        change,
        seed,
        precision_of(dtype_of(model)).resolution,
    )


def _by_heads(
    model: HookedModel, slices: Sequence[ExpertHeadContribution]
) -> dict[tuple[Head, ...], list[int]]:
    """The numbers of the slices by the query heads that they serve."""
    found: dict[tuple[Head, ...], list[int]] = defaultdict(list)
    for number, part in enumerate(slices):
        size = group_size(model, part.component)
        first = part.unit * size
        found[tuple((part.layer, head) for head in range(first, first + size))].append(number)
    return found


def _mean_over_groups(
    values: Float[Tensor, "prompt slice"], groups: Sequence[str]
) -> Float[np.ndarray, " slice"]:
    return group_means(values, groups).mean(axis=0)
