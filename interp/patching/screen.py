"""Screen and verify: attribution ranks all units, exact patching verifies the first.

The effects of the other units are bounded, as in AtP*'s diagnostic (arXiv 2403.00745, section
3.3): random eighths of the unverified units are patched *together*, and for each unit the runs
that patched it are compared with those that did not. The difference of means estimates the unit's
average effect among a few others; its upper confidence limit, over all units at once, bounds the
missed effects. Where effects add, it is the effect of the unit alone. Subsets are small so that
effects nearly add (with halves, random models exceeded the bound one time in five).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import real_number, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.patching import screening_figure
from interp.forward.batch import Prompts, TokenBatch
from interp.forward.hook_points import check_component
from interp.forward.memory import Budget
from interp.forward.prompts import batch_for
from interp.lazy import go, stats
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import Positions, align
from interp.patching.effect_arrays import correlations
from interp.patching.metrics import Metric
from interp.patching.patch_inputs import PatchInputs
from interp.patching.patch_source import check_patch_source, mean_values, patching_edit
from interp.patching.result import PatchEffects
from interp.patching.sweep import Unit, sweep_sets
from interp.patching.unit_effects import check_method, effects_of_units
from interp.statistics.significance import group_means

UNSIGNED = "atp*"
"""The method that estimates the size of an effect, without its sign."""


@dataclass(frozen=True)
class Screening(Displayed):
    """Estimates, verified effects and the bound of a screening.

    Attributes:
        estimate: of all units, by the method that ranks.
        verified: exact effects of the first ``top_k``; NaN elsewhere. Effects are ranked, here and
            in every result, by their mean over groups of prompts.
        pearson, spearman: of estimate and exact mean effects over the verified units; NaN where
            either is the same for all of them.
        bound: Float[layer unit], upper limit of each unverified unit's absolute effect among a
            few other units', NaN on the verified; jointly valid at ``confidence``.
        confidence: of the bound.
    """

    estimate: PatchEffects
    verified: PatchEffects
    pearson: float
    spearman: float
    bound: Float[np.ndarray, "layer unit"]
    confidence: float

    @property
    def largest_missed(self) -> float:
        """The largest bound: no unverified effect is larger, at the confidence, if effects add."""
        return float(np.nanmax(self.bound)) if np.isfinite(self.bound).any() else 0.0

    def plot(self) -> "go.Figure":
        """The exact effect of every verified unit against its estimate, and ``spearman``.

        An estimate without a sign (``atp*``) is compared with absolute effects.
        """
        others = [axis for axis in self.estimate.axes[1:] if axis != "layer"]
        return screening_figure(
            self.estimate.to_dataframe(),
            self.verified.to_dataframe(),
            unit_axis=others[0] if others else None,
            methods=(self.estimate.method, "exact"),
            metric=self.estimate.metric,
            spearman=self.spearman,
            sizes=self.estimate.method == UNSIGNED,
        )

    def _shown(self) -> Shown:
        verified = self.verified.to_dataframe().dropna(subset=["effect"])
        text = (
            f"{len(verified)} units verified exactly; Pearson {self.pearson:.2f}, Spearman "
            f"{self.spearman:.2f} with the estimate. No unverified unit's effect is larger than "
            f"{self.largest_missed:.3g}, at confidence {self.confidence:g} and as far as effects "
            "add."
        )
        return Shown(text, (verified,), self.plot)


@checked
def screen(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    component: str = "z",
    positions: Positions | str = "all",
    source: str = "run",
    reference: Prompts | None = None,
    ranked_by: str = "attribution",
    top_k: int = 20,
    subsets: int = 64,
    confidence: float = 0.95,
    groups: Sequence[str] = (),
    templates: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Screening:
    """Rank all units, verify the first ``top_k`` exactly, and bound the effects of the rest.

    Args:
        ranked_by: the method that ranks: ``attribution``, ``atp*``, ``ig`` or ``exact``.
        top_k: how many units are verified; at least two.
        subsets: how many random subsets of the other units are patched together.
        confidence: of the bound.

    The other arguments are those of ``interp.patching.patch``.

    Raises:
        UserError: positions other than "all", source ``resample``, a top_k below two, or whatever
            ``patch`` raises it for.
    """
    if not isinstance(positions, str) or positions != "all":
        raise UserError("screening is of whole units: use positions 'all'")
    if source == "resample":
        raise UserError("screening draws no resamples: use source run, zero or mean")
    check_method(ranked_by)
    if ranked_by == "screen":
        raise UserError("screening ranks by another method than itself: attribution, atp* or ig")
    shared: dict[str, Any] = {"groups": groups, "templates": templates, "seed": seed}
    shared |= {"budget": budget, "progress": progress}
    inputs = PatchInputs(model, clean, corrupted, metric, **shared)
    check_component(component, model)
    check_patch_source(source, component)
    subsets = whole_number("subsets", subsets, least=1)
    if (top_k := whole_number("top_k", top_k)) < 2:
        raise UserError(f"screening verifies at least two units, not {top_k}")
    if not 0 < (confidence := real_number("confidence", confidence)) < 1:
        raise UserError(f"confidence is between 0 and 1, not {confidence}")
    if reference is not None:
        reference = batch_for(model, reference, "reference")
    what: dict[str, Any] = {"component": component, "source": source, "reference": reference}
    found = _screen(inputs, what, ranked_by=ranked_by, top_k=top_k, subsets=subsets, at=confidence)
    metadata = {
        "ranked_by": ranked_by,
        "pearson": f"{found.pearson:.3f}",
        "spearman": f"{found.spearman:.3f}",
        "largest_missed": f"{found.largest_missed:.3g}",
        "confidence": f"{confidence:g}",
    }
    return replace(found, verified=replace(found.verified, method="screen", metadata=metadata))


def _screen(
    inputs: PatchInputs,
    what: Mapping[str, Any],
    *,
    ranked_by: str,
    top_k: int,
    subsets: int,
    at: float,
) -> Screening:
    """The screening of component, source and reference ``what``; the bound ``at`` a confidence."""
    estimate = effects_of_units(inputs, method=ranked_by, **what)
    means = estimate.group_mean.reshape(inputs.model.cfg.n_layers, -1)
    units = [divmod(index, means.shape[1]) for index in estimate.order().tolist()]
    chosen, rest = units[:top_k], units[top_k:]
    verified = effects_of_units(inputs, method="exact", units=chosen, **what)
    exact = verified.group_mean.reshape(means.shape)
    first = tuple(np.array(chosen).T)
    exact = np.abs(exact[first]) if ranked_by == UNSIGNED else exact[first]
    pearson, spearman = correlations(means[first], exact)
    bound = np.full(means.shape, np.nan)
    if rest:
        inside = random_eighths(len(rest), subsets, inputs.seed)
        sets = [[unit for unit, taken in zip(rest, row, strict=True) if taken] for row in inside]
        swept = _metric_of_subsets(inputs, sets, **what)
        values = group_means(swept, verified.groups).mean(axis=0)
        bound[tuple(np.array(rest).T)] = marginal_bounds(values, inside, at)
    return Screening(estimate, verified, pearson, spearman, bound, at)


def _metric_of_subsets(
    inputs: PatchInputs,
    subsets: Sequence[Sequence[Unit]],
    *,
    component: str,
    source: str,
    reference: TokenBatch | None,
) -> Float[Tensor, "prompt subset"]:
    """The metric with each subset of units patched together."""
    model, clean, corrupted = inputs.model, inputs.clean, inputs.corrupted
    mean = mean_values(model, reference or clean, component) if source == "mean" else None
    alignment = align(clean, corrupted, "all", everywhere=source in ("zero", "mean"))
    options: dict[str, Any] = {"component": component, "mean": mean, "zero": source == "zero"}
    with torch.no_grad():
        edit = patching_edit(model, clean, alignment, **options)
    options = {"budget": inputs.budget, "progress": inputs.progress}
    options |= {"metrics": [inputs.metric], "description": "random subsets"}
    return sweep_sets(model, corrupted, edit, sets=subsets, **options)[0]


def random_eighths(count: int, draws: int, seed: int) -> Bool[np.ndarray, "draw unit"]:
    """Random subsets: each unit, whatever the others, in an eighth of the draws (16 or more)."""
    generator = np.random.default_rng(seed)
    draws = max(draws, 16)
    order = generator.permuted(np.tile(np.arange(draws)[:, None], count), axis=0)
    return order < draws // 8


def marginal_bounds(
    values: Float[np.ndarray, " draw"], inside: Bool[np.ndarray, "draw unit"], confidence: float
) -> Float[np.ndarray, " unit"]:
    """Upper limit of every unit's absolute marginal effect, valid for all units at once.

    Difference of the means with and without the unit, and its standard error, at the quantile of
    Student's distribution (Welch's degrees of freedom) for confidence
    1 − (1 − confidence) / units (Bonferroni), two-sided.
    """
    n = inside.sum(axis=0).astype(float)
    m = len(inside) - n
    y = values.astype(float)[:, None]
    with_unit = (y * inside).sum(axis=0) / n
    without = (y * ~inside).sum(axis=0) / m
    variance_with = ((y - with_unit) ** 2 * inside).sum(axis=0) / (n - 1) / n
    variance_without = ((y - without) ** 2 * ~inside).sum(axis=0) / (m - 1) / m
    spread = variance_with + variance_without
    freedom = spread**2 / np.maximum(
        variance_with**2 / (n - 1) + variance_without**2 / (m - 1), np.finfo(float).tiny
    )
    quantile = stats.t.ppf(1 - (1 - confidence) / (2 * inside.shape[1]), np.maximum(freedom, 1))
    return np.abs(with_unit - without) + quantile * np.sqrt(spread)
