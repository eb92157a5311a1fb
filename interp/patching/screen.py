"""Screen and verify: attribution ranks all units, exact patching verifies the first.

What was left out gets a bound on what it could have been, in the manner of AtP*'s diagnostic
(arXiv 2403.00745, section 3.3): random eighths of the unverified units are patched *together*, and
for each unit the runs that patched it are compared with those that did not. The difference of
means estimates the unit's average effect among a few others'; its upper confidence limit, over all
units at once, bounds what was missed. That is the unit's own effect where effects add; subsets are
small so that they nearly do (halves of random models missed the largest one time in five).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from scipy.stats import pearsonr, spearmanr
from scipy.stats import t as student

from interp.arguments import real_number, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.patching import screening_figure
from interp.forward.batch import Prompts, TokenBatch
from interp.forward.hook_points import check_component
from interp.forward.memory import Budget
from interp.forward.prompts import batch_for, names_of_prompts, pairs_for
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import Positions, align
from interp.patching.metrics import Metric
from interp.patching.patch_source import check_patch_source, mean_values, patching_edit
from interp.patching.result import PatchEffects
from interp.patching.sweep import Unit, sweep_sets
from interp.patching.unit_effects import check_method, effects_of_units
from interp.statistics.significance import group_means


@dataclass(frozen=True)
class Screening(Displayed):
    """What a screening found.

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
        """No unverified unit's effect is larger, at the confidence and as far as effects add."""
        return float(np.nanmax(self.bound)) if np.isfinite(self.bound).any() else 0.0

    def plot(self) -> go.Figure:
        """The exact effect of every verified unit against its estimate."""
        others = [axis for axis in self.estimate.axes[1:] if axis != "layer"]
        return screening_figure(
            self.estimate.to_dataframe(),
            self.verified.to_dataframe(),
            unit_axis=others[0] if others else None,
            methods=(self.estimate.method, self.verified.method),
            metric=self.estimate.metric,
        )

    def _shown(self) -> Shown:
        verified = self.verified.to_dataframe().dropna(subset=["effect"])
        words = (
            f"{len(verified)} units verified exactly; Pearson {self.pearson:.2f}, Spearman "
            f"{self.spearman:.2f} with the estimate. No unverified unit's effect is larger than "
            f"{self.largest_missed:.3g}, at confidence {self.confidence:g} and as far as effects "
            "add."
        )
        return Shown(words, (verified,), self.plot)


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
    """Rank all units, verify the first ``top_k``, bound the rest. ``patch`` explains the arguments.

    Raises:
        UserError: places of more than one kind (only positions="all" can be screened), source
            ``resample``, or a top_k below two.
    """
    if not isinstance(positions, str) or positions != "all":
        raise UserError("screening is of whole units: use positions 'all'")
    if source == "resample":
        raise UserError("screening draws no resamples: use source run, zero or mean")
    clean, corrupted = pairs_for(model, clean, corrupted)
    check_method(ranked_by)
    if ranked_by == "screen":
        raise UserError("screening ranks by another method than itself: attribution, atp* or ig")
    check_component(component, model)
    check_patch_source(source, component)
    groups = names_of_prompts("groups", groups, len(corrupted))
    templates = names_of_prompts("templates", templates, len(corrupted))
    top_k, subsets = (
        whole_number("top_k", top_k),
        whole_number("subsets", subsets, least=1),
    )
    if top_k < 2:
        raise UserError(f"screening verifies at least two units, not {top_k}")
    confidence, seed = real_number("confidence", confidence), whole_number("seed", seed)
    if not 0 < confidence < 1:
        raise UserError(f"confidence is between 0 and 1, not {confidence}")
    if reference is not None:
        reference = batch_for(model, reference, "reference")
    options: dict[str, Any] = {
        "component": component,
        "source": source,
        "reference": reference,
        "groups": groups,
        "templates": templates,
        "seed": seed,
        "budget": budget,
        "progress": progress,
    }
    estimate = effects_of_units(model, clean, corrupted, metric, method=ranked_by, **options)
    means = estimate.group_mean.reshape(model.cfg.n_layers, -1)
    order = estimate.order().tolist()
    units = [(index // means.shape[1], index % means.shape[1]) for index in order]
    chosen, rest = units[:top_k], units[top_k:]
    verified = effects_of_units(model, clean, corrupted, metric, units=chosen, **options)
    exact = verified.group_mean.reshape(means.shape)
    pearson, spearman = _agreement(means, exact, chosen, ranked_by)
    bound = np.full(tuple(means.shape), np.nan)
    if rest:
        inside = random_eighths(len(rest), subsets, seed)
        values = _metric_of_subsets(
            model,
            clean,
            corrupted,
            metric,
            [_taken(rest, row) for row in inside],
            component=component,
            source=source,
            reference=reference,
            groups=verified.groups,
            budget=budget,
            progress=progress,
        )
        for unit, limit in zip(rest, marginal_bounds(values, inside, confidence), strict=True):
            bound[unit] = limit
    found = Screening(estimate, verified, pearson, spearman, bound, confidence)
    said = {
        "ranked_by": ranked_by,
        "pearson": f"{pearson:.3f}",
        "spearman": f"{spearman:.3f}",
        "largest_missed": f"{found.largest_missed:.3g}",
        "confidence": f"{confidence:g}",
    }
    return replace(found, verified=replace(verified, method="screen", metadata=said))


def _agreement(
    estimate: Float[np.ndarray, "layer unit"],
    exact: Float[np.ndarray, "layer unit"],
    units: Sequence[Unit],
    ranked_by: str,
) -> tuple[float, float]:
    """Pearson and Spearman over the units; NaN where either is the same for all of them."""
    x = np.array([float(estimate[unit]) for unit in units])
    y = np.array([float(exact[unit]) for unit in units])
    if ranked_by == "atp*":
        y = np.abs(y)
    # The correlation with a constant is not defined; scipy would warn.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    pearson: Any = pearsonr(x, y)
    spearman: Any = spearmanr(x, y)
    return float(pearson.statistic), float(spearman.statistic)


def _taken(units: Sequence[Unit], row: Bool[np.ndarray, " unit"]) -> list[Unit]:
    return [unit for unit, taken in zip(units, row, strict=True) if taken]


def _metric_of_subsets(
    model: HookedModel,
    clean: TokenBatch,
    corrupted: TokenBatch,
    metric: Metric,
    subsets: Sequence[Sequence[Unit]],
    *,
    component: str,
    source: str,
    reference: TokenBatch | None,
    groups: Sequence[str],
    budget: int | Budget | None,
    progress: bool,
) -> Float[np.ndarray, " subset"]:
    """The mean metric over groups of prompts with each subset of units patched together."""
    mean = mean_values(model, reference or clean, component) if source == "mean" else None
    alignment = align(clean, corrupted, "all", everywhere=source in ("zero", "mean"))
    with torch.no_grad():
        edit = patching_edit(model, clean, alignment, component, mean=mean, zero=source == "zero")
    swept = sweep_sets(
        model,
        corrupted,
        edit,
        subsets,
        [metric],
        budget=budget,
        progress=progress,
        description="random subsets",
    )[0]
    return group_means(swept, groups).mean(axis=0)


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
    of_with = ((y - with_unit) ** 2 * inside).sum(axis=0) / (n - 1) / n
    of_without = ((y - without) ** 2 * ~inside).sum(axis=0) / (m - 1) / m
    spread = of_with + of_without
    freedom = spread**2 / np.maximum(
        of_with**2 / (n - 1) + of_without**2 / (m - 1), np.finfo(float).tiny
    )
    quantile = student.ppf(1 - (1 - confidence) / (2 * inside.shape[1]), np.maximum(freedom, 1))
    return np.abs(with_unit - without) + quantile * np.sqrt(spread)
