"""Exact effect of editing each unit alone: one value per metric, prompt, layer and unit.

The plain loop costs (units) × (full forward). The same numbers are computed for less:

* positions before the first edited one run once, and layers below the edited one are not run
  again (``forward.resume``); of the edited layer only what follows the heads' outputs runs;
* all units of a layer run in one batch, within a memory budget;
* in the last layer, and of the unembedding, only the last position runs;
* the model's modules without hook points run with a fused attention kernel (``unhooked``).

``freeze`` gives path patching as FAITH does it (arXiv 2402.19103, section 3.3; after Wang et al.
2022): at the positions where the edited head's output differs, every other head of every layer
keeps its output of the unedited run, while MLPs there, and everything at later positions, are
recomputed.

Values are the metrics of the edited run, not differences. Subtract only metrics of the same runs:
an empty set of units gives them, and ``sweep_effects`` subtracts them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import listed, pairs_of_numbers
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch, in_batches
from interp.forward.cpu_workers import Workers, working
from interp.forward.hook_points import axis_of, check_component, count_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.partial import Hook, RecordedRun, record_run, resume
from interp.forward.prompts import batch_for
from interp.forward.transfer import repeated_rows, upload
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.moved import old_names
from interp.patching.checks import attempts
from interp.patching.chunks import (
    Chunk,
    DemandAt,
    first_position,
    row_demand,
    run_chunks,
    take_chunk,
)
from interp.patching.edits import ActivationEdit, HeadEdit, check_edit, rows_of_units
from interp.patching.metrics import Metric, apply_metric, narrow_metrics
from interp.precision import result_dtype
from interp.progress import progress_bar

Unit = tuple[int, int]
UnitSet = tuple[Unit, ...]


def freeze_hooks(
    run: RecordedRun, changed: Bool[Tensor, "prompt pos"], *, layers: Sequence[int], rows: Tensor
) -> list[Hook]:
    """Hooks that hold every head of ``layers`` at its recorded output in the changed positions."""
    where = changed[rows, run.start :, None, None]

    def hold(z: Tensor, hook: object, *, layer: int) -> Tensor:
        return torch.where(where.to(z.device), run.z[layer, rows].to(z.device), z)

    return [(hook_name("z", layer), partial(hold, layer=layer)) for layer in layers]


@checked
def sweep_sets(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    *,
    sets: Sequence[Sequence[Unit]],
    metrics: Sequence[Metric],
    freeze: bool = False,
    budget: int | Budget | None = None,
    progress: bool = True,
    description: str = "head sets",
) -> Float[Tensor, "metric prompt set"]:
    """Edit each set of units together and read the metrics; an empty set is the unedited run.

    Args:
        model: a hooked model.
        batch: the prompts.
        edit: what an edited unit does, and at which positions.
        sets: each a sequence of (layer, unit); units of ``edit.component``, by default heads.
        metrics: each Float[prompt d_vocab] → Float[prompt]; see ``interp.patching.metrics``.
        freeze: path patching; for sets of one head.
        budget: bytes that the call may take; by default as ``interp.forward.memory``.
        description: of the progress bar.

    Returns:
        Float[metric prompt set], on the CPU; float64 for a model in float64, else float32.
    """
    check_edit(edit)
    options: dict[str, Any] = {"freeze": freeze, "budget": budget, "progress": progress}
    return sweep_position_sets(
        model,
        batch,
        edit,
        position_sets=edit.changed[None],
        sets=sets,
        metrics=metrics,
        description=description,
        **options,
    )[..., 0]


@checked
@keeping_unhooked()
def sweep_position_sets(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    *,
    position_sets: Bool[Tensor, "position_set prompt pos"],
    sets: Sequence[Sequence[Unit]],
    metrics: Sequence[Metric],
    freeze: bool = False,
    budget: int | Budget | None = None,
    progress: bool = True,
    description: str = "units",
    prepare: Callable[[RecordedRun, Chunk], RecordedRun] | None = None,
) -> Float[Tensor, "metric prompt set position_set"]:
    """Edit each set of units at each of several sets of positions; see ``sweep_sets``.

    Args:
        position_sets: positions to edit in place of ``edit.changed``; a prompt in which a set is
            empty gets NaN there. The later a set begins, the less is run again.
        prepare: makes the run that is edited from that of the prompts, which begins where the first
            position is edited.
    """
    check_edit(edit)
    batch, component = batch_for(model, batch, "batch"), edit.component
    position_sets = position_sets.cpu()
    check_component(component, model)
    unit_sets = [tuple(pairs_of_numbers("units", units)) for units in listed("sets", sets)]
    metrics = listed("metrics", metrics)
    check_units(model, [unit for units in unit_sets for unit in units], component)
    if freeze and any(len(units) > 1 for units in unit_sets):
        raise UserError("path patching edits one head at a time: give sets of one head")
    if freeze and axis_of(component) != "head":
        raise UserError(f"path patching edits what heads write or read, not {component!r}")
    groups: dict[int, list[int]] = {}
    for index, units in enumerate(unit_sets):
        if units:
            groups.setdefault(min(layer for layer, _ in units), []).append(index)
    largest = max(map(len, groups.values()), default=1)
    keep = ("z",) if freeze or component == "z" else ()
    demand = row_demand(
        model,
        min(largest, count_units(model, component)),
        *keep,
        edits=[component],
        logits=narrow_metrics(metrics)[0] is None,
    )
    decided = decide_budget(budget, batch.tokens.device)
    shape = (len(metrics), len(batch), len(unit_sets), len(position_sets))
    values = torch.empty(shape, dtype=result_dtype(model))
    total = len(batch) * len(unit_sets) * len(position_sets)
    with (
        torch.no_grad(),
        progress_bar(total=total, description=description, shown=progress) as bar,
        working(model, batch.tokens.device) as workers,
    ):
        by_layer = list(groups.values())
        sweep = _Sweep(model, unit_sets, by_layer, freeze, demand, decided, workers, bar)

        def run_chunk(prompts: list[int]) -> None:
            for attempt in attempts():
                with attempt:
                    chunk = take_chunk(batch, edit, metrics, prompts=prompts)
                    at = position_sets[:, chunk.rows, chunk.drop :]
                    start = first_position(at.any(dim=0))
                    points = chunk.edit.hook_points
                    run = record_run(model, chunk.batch, start=start, keep=keep, edits=points)
                    run = run if prepare is None else prepare(run, chunk)
                    found = sweep.measure(run, chunk.edit, at, metrics=chunk.metrics)
                    values[:, prompts] = found.cpu()

        changed = position_sets.any(dim=0)
        options: Any = {"metrics": metrics, "budget": decided, "bar": bar}
        for _ in run_chunks(run_chunk, changed, demand, **options):
            pass
    return values


@checked
def sweep_heads(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    *,
    metrics: Sequence[Metric],
    freeze: bool = False,
    heads: Sequence[Unit] | None = None,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit"]:
    """Edit each head (or unit of the edit's component) alone; see ``sweep_sets``.

    Args:
        heads: only these (layer, head); the others are NaN.
    """
    check_edit(edit)
    options: dict[str, Any] = {"freeze": freeze, "budget": budget, "progress": progress}
    options |= {"metrics": metrics, "units": heads, "subtract": False}
    return sweep_effects(model, batch, edit, **options)[..., 0]


def sweep_effects(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    *,
    metrics: Sequence[Metric],
    units: Sequence[Unit] | None = None,
    position_sets: Bool[Tensor, "position_set prompt pos"] | None = None,
    subtract: bool = True,
    description: str = "heads",
    **options: Any,
) -> Float[Tensor, "metric prompt layer unit position_set"]:
    """Metrics with each unit edited alone, less those of the unedited run.

    Args:
        units: only these (layer, unit); the others are NaN.
        position_sets: see ``sweep_position_sets``; by default the one set ``edit.changed``.
        subtract: False for the metrics themselves.
        options: ``freeze``, ``budget`` and ``progress`` of ``sweep_sets``.
    """
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    if units is None:
        units = [(layer, unit) for layer in range(n_layers) for unit in range(n_units)]
    units = pairs_of_numbers("heads", units)
    at = edit.changed[None] if position_sets is None else position_sets
    options |= {"sets": [[], *([unit] for unit in units)], "metrics": metrics}
    swept = sweep_position_sets(
        model, batch, edit, position_sets=at, description=description, **options
    )
    values = swept.new_full((*swept.shape[:2], n_layers, n_units, len(at)), torch.nan)
    for index, (layer, unit) in enumerate(units, start=1):
        values[:, :, layer, unit] = swept[:, :, index]
    return values - swept[:, :, 0, None, None] if subtract else values


@dataclass(frozen=True)
class _Sweep:
    """What is the same for all chunks of prompts.

    ``groups`` are the indices of the sets that edit something, by the lowest layer they edit.
    """

    model: HookedModel
    sets: Sequence[UnitSet]
    groups: Sequence[Sequence[int]]
    freeze: bool
    demand: DemandAt
    budget: Budget
    workers: Workers
    bar: Any

    def measure(
        self,
        run: RecordedRun,
        edit: HeadEdit,
        position_sets: Bool[Tensor, "position_set prompt pos"],
        *,
        metrics: Sequence[Metric],
    ) -> Float[Tensor, "metric prompt set position_set"]:
        """The metrics of all sets of units at all sets of positions, in the prompts of a run.

        Args:
            position_sets: on the CPU; the metrics are on the prompts' device.
        """
        n_prompts, device = len(run.batch), run.batch.tokens.device
        logits, of_logits = self._unedited_logits(run, metrics)
        unedited = [self._values(metric, logits) for metric in of_logits]
        values = torch.stack(unedited)[:, :, None, None]
        values = values.repeat(1, 1, len(self.sets), len(position_sets))
        n_editing = sum(map(len, self.groups))
        # An attention edit cannot be moved to other positions.
        moved = isinstance(edit, ActivationEdit)
        changed = position_sets if moved else edit.changed.cpu()[None].expand_as(position_sets)
        for index, at in enumerate(position_sets):
            marked = at.any(dim=1)
            if bool(marked.any()):
                placed = replace(edit, at=upload(at, device)) if moved else edit
                narrow = run.from_position(first_position(changed[index]))
                width = narrow.batch.width
                demand = self.demand(width - narrow.start, width)
                fitting = demand.rows_within(self.budget, n_prompts)
                for some, block in self.workers.run(
                    narrow,
                    partial(self._edited_metrics, edit=placed, metrics=metrics),
                    self._batches(fitting // self.workers.count // n_prompts),
                    learn=lambda n_sets: demand.learn(self.budget, n_sets * n_prompts),  # noqa: B023
                ):
                    values[:, :, upload(torch.tensor(some), device), index] = block
                    self.bar.update(n_prompts * len(some))
            else:
                self.bar.update(n_prompts * n_editing)
            if not bool(marked.all()):
                empty = ~upload(marked, device)[None, :, None]
                values[..., index] = values[..., index].masked_fill(empty, torch.nan)
            self.bar.update(n_prompts * (len(self.sets) - n_editing))
        return values

    def _values(
        self, metric: Metric, logits: Float[Tensor, "prompt token"], *, when: str = ""
    ) -> Float[Tensor, " prompt"]:
        """A metric, in the type of results and where the logits are."""
        return apply_metric(metric, logits, when=when).to(logits.device, result_dtype(self.model))

    def _unedited_logits(
        self, run: RecordedRun, metrics: Sequence[Metric]
    ) -> tuple[Float[Tensor, "prompt token"], Sequence[Metric]]:
        """Logits of the unedited run, and the metrics of them, computed as edited runs' are.

        On a GPU the product with the whole unembedding rounds its input, a few tokens' does not.
        """
        tokens, narrowed = narrow_metrics(metrics)
        if tokens is None or run.plain is None or not run.plain.can_narrow:
            return run.logits, metrics
        for metric in metrics:  # one that cannot be applied is named
            apply_metric(metric, run.logits)
        where: dict[str, Any] = {"rows": run.batch.every_row, "layer": self.model.cfg.n_layers - 1}
        tokens = tokens.to(run.batch.tokens.device)
        return resume(self.model, run, tokens=tokens, **where), narrowed

    def _batches(self, largest: int) -> list[list[int]]:
        """Each group of sets in batches of about the same size."""
        batches = []
        for group in self.groups:
            n_batches = -(-len(group) // max(1, largest))
            batches += in_batches(group, -(-len(group) // n_batches))
        return batches

    def _edited_metrics(
        self, run: RecordedRun, some: list[int], *, edit: HeadEdit, metrics: Sequence[Metric]
    ) -> Float[Tensor, "metric prompt set"]:
        """Sets of units that begin in the same layer, each edited in all prompts of the run."""
        model, sets = self.model, [self.sets[index] for index in some]
        n_prompts, device = len(run.batch), run.batch.tokens.device
        rows = repeated_rows(n_prompts, len(sets), device)
        acting = {
            layer: rows_of_units(
                [[unit for at, unit in units if at == layer] for units in sets],
                count_units(model, edit.component),
                n_prompts,
                device=device,
            )
            for layer in sorted({layer for units in sets for layer, _ in units})
        }
        lowest, z = next(iter(acting)), None
        where: dict[str, Any] = {"rows": rows, "start": run.start}
        if edit.component == "z" and isinstance(edit, ActivationEdit):
            # The lowest layer's heads read what they did before: only what they write changes.
            units = acting.pop(lowest)
            z = edit.merged(run.z[lowest, rows], lowest, units=units, **where)
        hooks = [edit.hook(layer, units=units, **where) for layer, units in acting.items()]
        if self.freeze:
            above = range(lowest + 1, model.cfg.n_layers)
            hooks += freeze_hooks(run, edit.changed, layers=above, rows=rows)
        tokens, metrics = narrow_metrics(metrics)
        needed = None if tokens is None else tokens.to(device)[rows]
        logits = resume(model, run, layer=lowest, rows=rows, hooks=hooks, z=z, tokens=needed)
        values = [
            torch.stack(
                [
                    self._values(metric, of_set, when=f"with {list(units)} edited ")
                    for metric in metrics
                ]
            )
            for units, of_set in zip(sets, logits.split(n_prompts), strict=True)
        ]
        return torch.stack(values, dim=2).to(device)


def check_units(model: HookedModel, units: Sequence[Unit], component: str = "z") -> None:
    """Raise for the first (layer, unit) that the model does not have."""
    check_hooked(model)
    n_layers, n_units = model.cfg.n_layers, count_units(model, component)
    what = "head" if component in ("z", "q", "pattern") else "unit"
    for layer, unit in units:
        if not (0 <= layer < n_layers and 0 <= unit < n_units):
            raise UserError(
                f"{what} ({layer}, {unit}) does not exist: the model has layers 0 to "
                f"{n_layers - 1} and {what}s 0 to {n_units - 1}"
            )


__getattr__ = old_names(__name__)
