"""Effects of every unit of a component, by any method: what ``patch`` and ``screen`` run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice, pairs_of_numbers
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import axis_of, count_units
from interp.forward.out_of_memory import halving
from interp.patching.alignment import Alignment, Positions, align
from interp.patching.atp_star import atp_star_effects
from interp.patching.attribution import attribute_positions
from interp.patching.chunks import chunk_prompts, graph_demand, row_demand
from interp.patching.edits import ActivationEdit
from interp.patching.integrated_gradients import integrate_positions
from interp.patching.metrics import Metric, can_take, take_metrics
from interp.patching.patch_inputs import PatchInputs
from interp.patching.patch_source import derangement, mean_values, patching_edit
from interp.patching.result import PatchEffects
from interp.patching.sweep import Unit, check_units, sweep_effects
from interp.progress import progress_bar

Method = Literal["exact", "attribution", "atp*", "ig", "screen"]
DEFAULT_STEPS = 8


def check_method(method: str) -> None:
    """Raise UserError for an unknown method, listing the known ones."""
    check_choice("method", method, get_args(Method))


def effects_of_units(
    inputs: PatchInputs,
    *,
    component: str,
    method: str,
    positions: Positions | str = "all",
    source: str = "run",
    reference: TokenBatch | None = None,
    units: Sequence[Unit] | None = None,
    steps: int = DEFAULT_STEPS,
) -> PatchEffects:
    """Effects of all units, or of ``units``, by any method but ``screen``.

    The arguments are explained at ``interp.patching.patch``, which has checked most of them.
    """
    model, clean = inputs.model, inputs.clean
    source_batch = clean
    if source == "resample":
        order = derangement(len(clean), inputs.seed)
        source_batch = clean.take(order)
        if isinstance(positions, Mapping):
            positions = {
                name: ([there[index] for index in order], here)
                for name, (there, here) in positions.items()
            }
    everywhere = source in ("zero", "mean")
    alignment = align(source_batch, inputs.corrupted, positions, everywhere=everywhere)
    if component == "pattern" and positions not in ("all", "each") and source != "zero":
        raise UserError("a pattern's keys are positions: patch it at equal lengths, not at spans")
    if units is not None:
        if method != "exact":
            raise UserError(f"method {method!r} gives all units at once: leave `units` out")
        units = pairs_of_numbers("units", units)
        check_units(model, units, component)
    mean = mean_values(model, reference or clean, component) if source == "mean" else None
    run = _Patching(inputs, component, method, steps, units, mean, source == "zero")
    values, runs = run.effects(source_batch, alignment)
    axes, labels = ["prompt", "layer"], {}
    axis = axis_of(component)
    if axis is None:
        values = values.squeeze(2)
    else:
        axes.append(axis)
    if alignment.axis is None:
        values = values.squeeze(-1)
    else:
        axes.append(alignment.axis)
        labels[alignment.axis] = alignment.labels
    names: dict[str, Any] = {"component": component, "method": method, "source": source}
    return inputs.result(values, axes=tuple(axes), labels=labels, **names, **runs)


@dataclass(frozen=True)
class _Patching:
    """The arguments that are the same for every chunk of prompts; ``units`` None for all."""

    inputs: PatchInputs
    component: str
    method: str
    steps: int
    units: Sequence[Unit] | None
    mean: Tensor | None
    zero: bool

    def effects(
        self, source: TokenBatch, alignment: Alignment
    ) -> tuple[Float[Tensor, "prompt layer unit position_set"], dict[str, Tensor]]:
        """Effects, and by name the metric of the corrupted and of the clean runs."""
        inputs, model = self.inputs, self.inputs.model
        corrupted, n_sets = inputs.corrupted, len(alignment.position_sets)
        values = inputs.empty(model.cfg.n_layers, count_units(model, self.component), n_sets)
        runs = {"corrupted": inputs.empty(), "clean": inputs.empty()}

        # Chunks of prompts hold the other run's values in memory only while they are needed.
        def run_chunk(chunk: list[int]) -> None:
            prompts = inputs.index(chunk)
            rows, part, taken = torch.tensor(chunk), corrupted.take(chunk), source.take(chunk)
            narrow = alignment.take(
                prompts,
                drop=corrupted.width - part.width,
                # Positions are counted from the end, where all prompts of a batch line up.
                clean_drop=source.width - taken.width,
            )
            (metric,) = take_metrics([inputs.metric], prompts)
            with torch.no_grad():
                edit = patching_edit(
                    model, taken, narrow, component=self.component, mean=self.mean, zero=self.zero
                )
            runs["corrupted"][rows] = inputs.unedited_metric(part, metric)
            runs["clean"][rows] = inputs.unedited_metric(inputs.clean.take(chunk), metric)
            found = self._chunk_effects(
                part, edit, narrow.position_sets, metric=metric, progress=not shown
            )
            values[rows] = found

        if self.method == "exact":
            kept = ("z",) if self.component == "z" else ()
            demand = row_demand(model, values.shape[2], *kept, edits=[self.component])
        else:
            demand = graph_demand(model, self.component)
        metrics, budget = [inputs.metric], inputs.budget
        chunks = chunk_prompts(alignment.at, demand, metrics=metrics, budget=budget)
        shown = inputs.progress and len(chunks) > 1
        with progress_bar(total=len(corrupted), description=self.method, shown=shown) as bar:
            for chunk, _ in halving(chunks, run_chunk, divisible=can_take(metrics)):
                bar.update(len(chunk))
        if alignment.axis == "position":
            # Before the first difference a patch changes nothing; NaN is left for padding.
            unchanged = corrupted.mask[:, corrupted.width - n_sets :]
            unchanged = unchanged & ~alignment.position_sets.any(dim=2).T
            values = values.masked_fill(unchanged.cpu()[:, None, None, :], 0.0)
        return values, runs

    def _chunk_effects(
        self,
        batch: TokenBatch,
        edit: ActivationEdit,
        position_sets: Tensor,
        *,
        metric: Metric,
        progress: bool,
    ) -> Float[Tensor, "prompt layer unit position_set"]:
        model = self.inputs.model
        shown = self.inputs.progress and progress
        options: dict[str, Any] = {"budget": self.inputs.budget, "progress": shown}
        if self.method == "exact":
            options |= {"units": self.units, "description": self.component}
            return sweep_effects(
                model, batch, edit, metrics=[metric], position_sets=position_sets, **options
            )[0]
        if self.method == "atp*":
            return atp_star_effects(
                model, batch, edit, position_sets=position_sets, metric=metric, **options
            )
        if self.method == "ig":
            found = integrate_positions(
                model, batch, edit, metric=metric, steps=self.steps, **options
            )
        else:
            found = attribute_positions(model, batch, edit, metrics=[metric], **options)[0]
        return sum_over_positions(found, position_sets)


def sum_over_positions(
    effects: Float[Tensor, "prompt layer unit pos"], position_sets: Tensor
) -> Float[Tensor, "prompt layer unit position_set"]:
    """First-order effects of a set are the sum of its positions'; NaN where a set is empty."""
    masks = position_sets.to(device=effects.device, dtype=effects.dtype)
    summed = torch.einsum("plut,spt->plus", effects, masks)
    empty = (~position_sets.any(dim=2)).T.to(effects.device)[:, None, None, :]
    return summed.masked_fill(empty, torch.nan)
