"""The one result of every patching method: effects with named axes, per prompt.

Sign: effect = metric(patched) − metric(unpatched corrupted run). What is patched in comes from the
clean run (or is zero, a mean, a resample: ``source``), so with a metric that is high in the clean
run a **positive** effect means that the unit carries the clean answer.

The first axis is always ``prompt``. The others name what one patch covers: ``layer``; ``head`` for
query heads, ``kv_head`` for key/value groups; ``position``; ``span``; ``projection`` and
``expert`` for an adapter. A NaN is an effect that was not measured: padding, or a unit that was not
run. Means leave it out.

Effects are linear in the metric: ``a + b``, ``a - b``, ``2 * a`` and ``a / 2`` combine the metrics
of the runs as they combine the effects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import as_path, indices, listed, of_kind, whole_number
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.patching import result_figure
from interp.files.shape import check_shape
from interp.files.tensor_file import read_tensors, write_tensors
from interp.files.tensors import check_tensors
from interp.lazy import go, pd
from interp.moved import old_names
from interp.patching.effect_arrays import (
    By,
    best_first,
    check_axes,
    check_prompts,
    correlations,
    has_gap,
    joined_groups,
)
from interp.statistics.significance import (
    MINIMUM_GROUPS,
    RESOLUTION,
    EffectStatistics,
    effect_statistics,
    group_means,
    mean_over_groups,
)

Coordinates = tuple[int | str, ...]
"""Where a unit is, without the prompt: (layer, head), say, or (layer, "subject")."""

STATISTICS = ("ci_low", "ci_high", "p_value", "q_value")
_TEXTS = ("component", "method", "metric", "source")
_KEPT = (*_TEXTS, "axes", "labels", "groups", "templates", "seed", "resolution", "metadata")
_FILE_SHAPE = {
    **dict.fromkeys(_TEXTS, str),
    **{key: [str] for key in ("axes", "groups", "templates")},
    "labels": {str: [str]},
    "seed": int,
    "resolution": float,
    "metadata": {str: str},
}


@dataclass(frozen=True, eq=False)
class PatchEffects(Displayed):
    """Effects of patching each unit alone, per prompt.

    Attributes:
        values: Float[prompt …], one axis for each name in ``axes``; NaN where not measured.
        axes: names of the axes, "prompt" first.
        corrupted: Float[prompt], the metric in the unpatched corrupted run.
        clean: Float[prompt], the metric in the clean run, or None where there was none.
        component: what was patched: "z", "q", "mlp_out", …
        method: how: "exact", "attribution", "ig", …
        metric: the metric's name, and so the unit of the effects.
        source: where patched values came from: "run", "zero", "mean", "resample", or "noise".
        labels: names along an axis, such as spans; an axis without is counted from zero.
        groups: of each prompt, what is resampled together; by default each prompt its own.
        templates: of each prompt; empty text by default.
        seed: of the intervals and tests.
        resolution: effects below this are rounding and count as none in tests; in the metric's
            unit, by default that of logits.
        metadata: anything else to save with the result, as text (the model's fingerprint, say).
    """

    values: Float[Tensor, "prompt ..."]
    axes: tuple[str, ...]
    corrupted: Float[Tensor, " prompt"]
    component: str
    method: str
    metric: str
    source: str = "run"
    clean: Float[Tensor, " prompt"] | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    seed: int = 0
    resolution: float = RESOLUTION
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", self.templates or ("",) * len(self.values))
        labels = {axis: tuple(map(str, names)) for axis, names in self.labels.items()}
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "resolution", float(self.resolution))
        check_axes(self.axes, self.values.shape, self.labels)
        check_prompts(self, "templates", "corrupted", "clean")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of units along each axis but the prompts'."""
        return tuple(self.values.shape[1:])

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Mean over groups of each group's mean effect, [units…]; NaN where not measured."""
        return torch.from_numpy(self.group_mean).to(self.values.dtype)

    @cached_property
    def statistics(self) -> EffectStatistics:
        """Mean over groups, interval, p- and q-value of every unit, each [units…].

        Raises:
            UserError: fewer groups than ``MINIMUM_GROUPS``.
        """
        return effect_statistics(
            self.values, self.groups, seed=self.seed, resolution=self.resolution
        )

    def recovered(self) -> Float[Tensor, "..."]:
        """The fraction of the clean run's advantage that each unit brings back, [units…].

        Mean effect over mean gap (clean − corrupted), both over the prompts in which the unit was
        measured, and then over groups, as in ``mean``; NaN where it was not measured. A fraction
        of means: the mean of fractions explodes where one gap is near zero.

        Raises:
            UserError: there was no clean run, or the mean gap is zero.
        """
        if self.clean is None:
            raise UserError("there is no clean run in this result, so no gap to recover")
        runs = [torch.from_numpy(group_means(x, self.groups)) for x in (self.clean, self.corrupted)]
        if not has_gap(*runs):
            raise UserError(
                f"clean and corrupted runs have the same mean {self.metric} "
                f"({float(runs[0].mean()):.4g}): there is no gap to recover"
            )
        gaps = (self.clean.double() - self.corrupted.double()).reshape(-1, *[1] * len(self.shape))
        measured = gaps.expand(self.values.shape).masked_fill(self.values.isnan(), torch.nan)
        gap = torch.from_numpy(mean_over_groups(measured, self.groups))
        return (torch.from_numpy(self.group_mean) / gap).to(self.values.dtype)

    def coordinates(self) -> tuple[Coordinates, ...]:
        """Where each unit is, in the order of the flattened values."""
        return tuple(product(*(self._names(axis) for axis in self.axes[1:])))

    def _names(self, axis: str) -> Sequence[int | str]:
        return self.labels.get(axis) or range(self.values.shape[self.axes.index(axis)])

    def order(self, *, by: By = "absolute") -> np.ndarray:
        """Indices of the measured units, largest ``absolute`` or ``signed`` mean effect first.

        Means are over groups, as in the statistics; of equal units the first wins.
        """
        mean = self.group_mean.ravel()
        return best_first(mean, by=by)[: len(mean) - np.isnan(mean).sum()]

    @cached_property
    def group_mean(self) -> Float[np.ndarray, "..."]:
        """``mean`` in float64."""
        return mean_over_groups(self.values, self.groups)

    def top_k(self, k: int, *, by: By = "absolute") -> list[Coordinates]:
        """Coordinates of the ``k`` units with the largest ``absolute`` or ``signed`` mean effects.

        All of them, if there are fewer.
        """
        if whole_number("k", k) < 0:
            raise UserError(f"cannot take the top {k} units")
        where = self.coordinates()
        return [where[unit] for unit in self.order(by=by)[:k]]

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a measured unit, largest absolute effect first.

        Columns: the axes' coordinates, ``effect`` (mean over groups), ``ci_low``, ``ci_high``,
        ``p_value``, ``q_value`` (NaN with fewer than ``MINIMUM_GROUPS`` groups), ``rank`` by
        absolute effect, from one.
        """
        order, where = self.order(), self.coordinates()
        enough = len(set(self.groups)) >= MINIMUM_GROUPS
        frame = pd.DataFrame([where[unit] for unit in order], columns=list(self.axes[1:]))
        frame["effect"] = self.group_mean.ravel()[order]
        for name in STATISTICS:
            frame[name] = getattr(self.statistics, name).ravel()[order] if enough else np.nan
        frame["rank"] = np.arange(1, len(order) + 1)
        return frame

    def agreement(
        self, other: "PatchEffects", *, top_k: int = 10, by: By = "absolute"
    ) -> dict[str, float]:
        """How alike two results' mean effects are, over the units measured in both.

        Returns:
            ``pearson``, ``spearman``, ``n`` units, and ``top_k_overlap``: the share of the
            ``top_k`` units, by ``absolute`` or ``signed`` effect, that both have.

        Raises:
            UserError: the results are not of the same units, or share fewer than three.
        """
        of_kind("other", other, PatchEffects)
        top_k = whole_number("top_k", top_k, least=1)
        self._check_units(other)
        x, y = self.group_mean.ravel(), other.group_mean.ravel()
        both = ~(np.isnan(x) | np.isnan(y))
        if both.sum() < 3:
            raise UserError("the two results share fewer than three measured units")
        x, y = x[both], y[both]
        k = min(top_k, len(x))
        top = [set(best_first(means, by=by)[:k]) for means in (x, y)]
        pearson, spearman = correlations(x, y)
        found = {"pearson": pearson, "spearman": spearman, "n": len(x), "top_k": k}
        return {**found, "top_k_overlap": len(top[0] & top[1]) / k}

    def take(self, prompts: Sequence[int]) -> "PatchEffects":
        """The effects on some of the prompts, by index; an index may come twice."""
        index = indices("prompts", prompts, len(self))
        if not index:
            raise UserError(f"no prompts are taken of {len(self)}")
        groups = tuple(self.groups[i] for i in index)
        templates = tuple(self.templates[i] for i in index)
        return self._mapped(lambda values: values[index], groups=groups, templates=templates)

    def _mapped(self, change: Callable[[Tensor], Tensor], **fields: Any) -> "PatchEffects":
        """The result with a change of the effects and of the runs' metrics, and other fields."""
        clean = None if self.clean is None else change(self.clean)
        values, corrupted = change(self.values), change(self.corrupted)
        return replace(self, values=values, corrupted=corrupted, clean=clean, **fields)

    @classmethod
    def concatenate(cls, results: Sequence["PatchEffects"]) -> "PatchEffects":
        """One result over the prompts of several, in order; all else is as in the first.

        Raises:
            UserError: no results, or results that differ in more than their prompts.
        """
        results = [of_kind("a result", result, cls) for result in listed("results", results)]
        if not results:
            raise UserError("there are no results to concatenate")
        first = results[0]
        for other in results[1:]:
            first._check_same(other, "axes", "shape", "labels", *_TEXTS)
        clean = [result.clean for result in results if result.clean is not None]
        return replace(
            first,
            values=torch.cat([result.values for result in results]),
            corrupted=torch.cat([result.corrupted for result in results]),
            clean=torch.cat(clean) if len(clean) == len(results) else None,
            groups=joined_groups([result.groups for result in results]),
            templates=sum((result.templates for result in results), ()),
        )

    def __add__(self, other: Any) -> "PatchEffects":
        return self._combine(other, 1.0, "+")

    def __sub__(self, other: Any) -> "PatchEffects":
        return self._combine(other, -1.0, "−")

    def __mul__(self, factor: Any) -> "PatchEffects":
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        resolution = self.resolution * abs(factor)
        return self._mapped(lambda values: values * factor, resolution=resolution)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> "PatchEffects":
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if factor == 0:
            raise UserError("a result cannot be divided by zero")
        return self * (1 / factor)

    def __neg__(self) -> "PatchEffects":
        return self * -1.0

    def _combine(self, other: Any, sign: float, symbol: str) -> "PatchEffects":
        if not isinstance(other, PatchEffects):
            return NotImplemented
        self._check_units(other)
        if self.groups != other.groups:
            raise UserError("the results are of different prompts: their groups differ")
        texts = {name: (getattr(self, name), getattr(other, name)) for name in _TEXTS}
        both = self.clean is not None and other.clean is not None
        return replace(
            self,
            values=self.values + sign * other.values,
            corrupted=self.corrupted + sign * other.corrupted,
            clean=self.clean + sign * other.clean if both else None,  # type: ignore[operator]
            resolution=self.resolution + other.resolution,
            metadata={k: v for k, v in self.metadata.items() if other.metadata.get(k) == v},
            **{name: a if a == b else f"{a} {symbol} {b}" for name, (a, b) in texts.items()},
        )

    def _check_units(self, other: "PatchEffects") -> None:
        """Raise unless both results are of the same units, and of as many prompts."""
        self._check_same(other, "axes", "shape", "labels")
        if len(self) != len(other):
            raise UserError(f"the results differ in prompts: {len(self)} and {len(other)}")

    def _check_same(self, other: "PatchEffects", *names: str) -> None:
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise UserError(f"the results differ in {name}: {mine} and {theirs}")

    def plot(self, *, fdr: float = 0.05, title: str | None = None) -> "go.Figure":
        """A figure of the mean effects that fits the axes; see ``interp.figures.patching``.

        Args:
            fdr: the q-value up to which an effect counts as significant.
            title: by default the component and the method.

        Raises:
            UserError: axes for which there is no figure.
        """
        how = "put back into noised runs" if self.source == "noise" else self.method
        return result_figure(
            self.group_mean,
            self.to_dataframe(),
            names={axis: self._names(axis) for axis in self.axes[1:]},
            component=self.component,
            metric=self.metric,
            title=title or f"{self.component}, {how}",
            fdr=fdr,
        )

    def _shown(self) -> Shown:
        sizes = zip(self.shape, self.axes[1:], strict=True)
        units = " × ".join(f"{n} {axis}s" for n, axis in sizes)
        text = (
            f"Effects of patching {self.component} ({self.method}, source {self.source}) on "
            f"{self.metric}: {units}, {len(self)} prompts. Positive: the metric rises from the "
            "corrupted run."
        )
        return Shown(text, (self.to_dataframe(),), self.plot)

    def save(self, path: str | Path) -> Path:
        """Write the result to a safetensors file, whole or not at all."""
        return write_tensors(as_path("path", path), *self.parts())

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The result as tensors and JSON fields; ``from_parts`` reads them."""
        tensors = {"values": self.values, "corrupted": self.corrupted}
        tensors |= {} if self.clean is None else {"clean": self.clean}
        kept = {name: getattr(self, name) for name in _KEPT}
        return tensors, kept | {"labels": dict(self.labels), "metadata": dict(self.metadata)}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], kept: Mapping[str, Any]) -> "PatchEffects":
        """The result that ``parts`` was called on. Raises UserError for anything else."""
        check_shape(kept, _FILE_SHAPE, "its metadata")
        per_prompt = {name: tensors[name] for name in ("corrupted", "clean") if name in tensors}
        check_tensors(tensors, values=None, **dict.fromkeys(("corrupted", *per_prompt), 1))
        return cls(
            values=tensors["values"],
            axes=tuple(kept["axes"]),
            labels={axis: tuple(names) for axis, names in kept["labels"].items()},
            groups=tuple(kept["groups"]),
            templates=tuple(kept["templates"]),
            seed=kept["seed"],
            resolution=float(kept["resolution"]),
            metadata=dict(kept["metadata"]),
            **per_prompt,
            **{name: kept[name] for name in _TEXTS},
        )

    @classmethod
    def load(cls, path: str | Path) -> "PatchEffects":
        """Read what ``save`` wrote. Raises UserError for no file, or a damaged one."""
        path = as_path("path", path)
        try:
            return cls.from_parts(*read_tensors(path, _KEPT))
        except FileNotFoundError as error:
            raise UserError(f"there is no patching result at {path}") from error
        except UserError as error:
            raise UserError(f"{path} is not a patching result, or is damaged ({error})") from error


__getattr__ = old_names(__name__)
