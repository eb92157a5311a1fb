"""Effects of every unit of a component, by any method: what ``patch`` and ``screen`` run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import pairs_of_numbers
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import axis_of, count_units
from interp.forward.memory import Budget, decide_budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import unedited_logits
from interp.forward.trial import sweep_resolution
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import Alignment, Positions, align
from interp.patching.atp_star import atp_star_columns
from interp.patching.attribution import attribute_columns
from interp.patching.chunks import Demand, chunk_prompts, graph_demand, row_demand
from interp.patching.edits import ActivationEdit
from interp.patching.integrated_gradients import integrate_columns
from interp.patching.metrics import (
    Metric,
    apply_metric,
    can_take,
    metric_name,
    take_metrics,
)
from interp.patching.patch_source import derangement, mean_values, patching_edit
from interp.patching.result import PatchEffects
from interp.patching.sweep import Unit, check_units, sweep_places
from interp.precision import result_dtype
from interp.progress import progress_bar

Method = Literal["exact", "attribution", "atp*", "ig", "screen"]
DEFAULT_STEPS = 8


def check_method(method: str) -> None:
    """Raise for an unknown method, and list the known."""
    if not isinstance(method, str) or method not in get_args(Method):
        raise UserError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")


def effects_of_units(
    model: HookedModel,
    clean: TokenBatch,
    corrupted: TokenBatch,
    metric: Metric,
    *,
    component: str = "z",
    method: str = "exact",
    positions: Positions | str = "all",
    source: str = "run",
    reference: TokenBatch | None = None,
    units: Sequence[Unit] | None = None,
    steps: int = DEFAULT_STEPS,
    groups: Sequence[str] = (),
    templates: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Effects of all units, or of ``units``, by any method but ``screen``.

    The arguments are those of ``interp.patching.patch``, which has checked them.
    """
    origin = clean
    if source == "resample":
        origin, positions = _resampled(clean, positions, seed)
    alignment = align(origin, corrupted, positions, everywhere=source in ("zero", "mean"))
    if component == "pattern" and positions not in ("all", "each") and source != "zero":
        raise UserError("a pattern's keys are positions: patch it at equal lengths, not at spans")
    if units is not None:
        if method != "exact":
            raise UserError(f"method {method!r} gives all units at once: leave `units` out")
        units = pairs_of_numbers("units", units)
        check_units(model, units, component)
    mean = mean_values(model, reference or clean, component) if source == "mean" else None
    run = _Patching(
        model,
        metric,
        component,
        method,
        steps,
        units,
        mean,
        source == "zero",
        decide_budget(budget, corrupted.tokens.device),
        progress,
    )
    values, bare, clean_metric = run.over(clean, origin, corrupted, alignment)
    return _result(
        run,
        values,
        bare,
        clean_metric,
        alignment,
        source=source,
        groups=groups,
        templates=templates,
        seed=seed,
    )


def _resampled(
    clean: TokenBatch, positions: Positions | str, seed: int
) -> tuple[TokenBatch, Positions | str]:
    """The clean prompts in another order, and their spans in the same."""
    order = derangement(len(clean), seed)
    if isinstance(positions, Mapping):
        positions = {
            name: ([there[index] for index in order], here)
            for name, (there, here) in positions.items()
        }
    return clean.take(order), positions


@dataclass(frozen=True)
class _Patching:
    """The arguments that stay the same for every chunk of prompts; ``units`` None for all."""

    model: HookedModel
    metric: Metric
    component: str
    method: str
    steps: int
    units: Sequence[Unit] | None
    mean: Tensor | None
    zero: bool
    budget: Budget
    progress: bool

    def over(
        self, clean: TokenBatch, origin: TokenBatch, corrupted: TokenBatch, alignment: Alignment
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Effects [prompt layer unit place], metric of the corrupted and of the clean run."""
        model, n_places = self.model, len(alignment.places)
        n_layers, n_units = model.cfg.n_layers, count_units(model, self.component)
        dtype = result_dtype(model)
        values = torch.full((len(corrupted), n_layers, n_units, n_places), torch.nan, dtype=dtype)
        bare, clean_metric = torch.empty(2, len(corrupted), dtype=dtype)
        # Chunks of prompts hold the other run's values in memory only while they are needed.
        chunks = chunk_prompts(alignment.at, self._demand(n_units), [self.metric], self.budget)
        shown = self.progress and len(chunks) > 1

        def run_chunk(chunk: list[int]) -> None:
            prompts = torch.as_tensor(chunk, device=corrupted.tokens.device)
            part, source = corrupted.take(chunk), origin.take(chunk)
            own = _part_of(alignment, prompts, corrupted, part, origin, source)
            (metric,) = take_metrics([self.metric], prompts)
            with torch.no_grad():
                edit = patching_edit(
                    model, source, own, self.component, mean=self.mean, zero=self.zero
                )
                rows = prompts.cpu()
                bare[rows] = _metric_of(model, part, metric).to("cpu", dtype)
                clean_metric[rows] = _metric_of(model, clean.take(chunk), metric).to("cpu", dtype)
            values[rows] = self._values(part, edit, own, metric, not shown)

        with progress_bar(total=len(corrupted), description=self.method, shown=shown) as bar:
            for chunk, _ in halving(chunks, run_chunk, divisible=can_take([self.metric])):
                bar.update(len(chunk))
        if alignment.axis == "position":
            # Before the first difference a patch is no patch; NaN is left to padding.
            start = corrupted.width - n_places
            same = (corrupted.mask[:, start:] & ~alignment.places.any(dim=2).T).cpu()
            values = values.masked_fill(same[:, None, None, :], 0.0)
        return values, bare, clean_metric

    def _demand(self, n_units: int) -> Demand:
        """One chunk's."""
        if self.method != "exact":
            return graph_demand(self.model, self.component)
        kept = ("z",) if self.component == "z" else ()
        return row_demand(self.model, n_units, *kept, edits=[self.component])

    def _values(
        self,
        batch: TokenBatch,
        edit: ActivationEdit,
        alignment: Alignment,
        metric: Metric,
        last: bool,
    ) -> Float[Tensor, "prompt layer unit place"]:
        options = {"budget": self.budget, "progress": self.progress and last}
        model, places = self.model, alignment.places
        n_layers, n_units = model.cfg.n_layers, count_units(model, self.component)
        if self.method == "exact":
            units = self.units
            if units is None:
                units = [(layer, unit) for layer in range(n_layers) for unit in range(n_units)]
            shape = (len(batch), n_layers, n_units, len(places))
            values = torch.full(shape, torch.nan, dtype=result_dtype(model))
            # The empty set is the unedited run that the edited ones begin with.
            swept = sweep_places(
                model,
                batch,
                edit,
                places,
                [[], *([unit] for unit in units)],
                [metric],
                description=self.component,
                **options,
            )[0]
            for index, (layer, unit) in enumerate(units, start=1):
                values[:, layer, unit] = swept[:, index] - swept[:, 0]
            return values
        if self.method == "attribution":
            columns = attribute_columns(model, batch, edit, [metric], **options)[0]
        elif self.method == "ig":
            columns = integrate_columns(model, batch, edit, metric, steps=self.steps, **options)
        else:
            return atp_star_columns(model, batch, edit, places, metric, **options)
        return sum_over_places(columns, places)


def sum_over_places(
    columns: Float[Tensor, "prompt layer unit pos"], places: Tensor
) -> Float[Tensor, "prompt layer unit place"]:
    """First-order effects add up over positions; NaN where a place is empty."""
    masks = places.to(device=columns.device, dtype=columns.dtype)
    summed = torch.einsum("plut,spt->plus", columns, masks)
    empty = (~places.any(dim=2)).T.to(columns.device)[:, None, None, :]
    return summed.masked_fill(empty, torch.nan)


def _part_of(
    alignment: Alignment,
    prompts: Tensor,
    corrupted: TokenBatch,
    part: TokenBatch,
    origin: TokenBatch,
    source: TokenBatch,
) -> Alignment:
    """The alignment of some prompts, whose batches are cut to the width that they need."""
    drop = corrupted.width - part.width
    columns = alignment.columns[prompts, drop:]
    # Columns are counted from the end, where all prompts of a batch line up.
    columns = (columns - origin.width + source.width).clamp(min=0)
    return Alignment(alignment.places[:, prompts, drop:], columns, alignment.axis, alignment.labels)


@torch.no_grad()
def _metric_of(model: HookedModel, batch: TokenBatch, metric: Metric) -> Float[Tensor, " prompt"]:
    return apply_metric(metric, unedited_logits(model, batch))


def _result(
    run: _Patching,
    values: Float[Tensor, "prompt layer unit place"],
    corrupted: Tensor,
    clean: Tensor,
    alignment: Alignment,
    *,
    source: str,
    groups: Sequence[str],
    templates: Sequence[str],
    seed: int,
) -> PatchEffects:
    axes, labels = ["prompt", "layer"], {}
    axis = axis_of(run.component)
    if axis is None:
        values = values.squeeze(2)
    else:
        axes.append(axis)
    if alignment.axis is None:
        values = values.squeeze(-1)
    else:
        axes.append(alignment.axis)
        labels[alignment.axis] = alignment.labels
    return PatchEffects(
        values=values,
        axes=tuple(axes),
        corrupted=corrupted,
        clean=clean,
        component=run.component,
        method=run.method,
        metric=metric_name(run.metric),
        source=source,
        labels=labels,
        groups=tuple(groups),
        templates=tuple(templates),
        seed=seed,
        resolution=sweep_resolution(run.model),
    )
