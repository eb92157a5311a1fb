"""Exact effect of editing each unit alone: one value per metric, prompt, layer, unit (and place).

The plain loop costs (units) × (full forward). The same numbers come from: the columns before the
first edited one run once; layers below the edited one not run again (``forward.resume``), and of
the edited layer only what follows the heads' outputs; all units of a layer in one batch, within a
memory budget; in the last layer, and of the unembedding, the last position only; the model's plain
modules with a fused attention kernel (``plain``).

``freeze`` gives path patching as FAITH does it (arXiv 2402.19103, section 3.3; after Wang et al.
2022): at the columns where the edited head's output differs, every other head of every layer
keeps its output of the unedited run, while MLPs there, and everything at later columns, are
recomputed.

Values are the metrics themselves in the edited run, not differences; what is subtracted from them
has to come from the same runs, which an empty set of units and ``sweep_effects`` see to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, HookFunction, RecordedRun, record_run, resume
from interp.forward.prompts import batch_for
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.patching.chunks import (
    Chunk,
    Demand,
    chunk_prompts,
    first_column,
    row_demand,
    take_chunk,
)
from interp.patching.edits import ActivationEdit, HeadEdit, check_edit
from interp.patching.metrics import Metric, apply_metric, can_take, narrow_metrics
from interp.precision import result_dtype
from interp.progress import progress_bar

Unit = tuple[int, int]
UnitSet = tuple[Unit, ...]


def freeze_hooks(
    run: RecordedRun, changed: Bool[Tensor, "prompt pos"], layers: Sequence[int], rows: Tensor
) -> list[Hook]:
    """Hooks that hold every head of ``layers`` at its recorded output in the changed columns."""
    where = changed[rows, run.start :, None, None]

    def hold(layer: int) -> HookFunction:
        def hook_function(z: Tensor, hook: object) -> Tensor:
            return torch.where(where, run.z[layer, rows], z)

        return hook_function

    return [(hook_name("z", layer), hold(layer)) for layer in layers]


def _acting(
    sets: Sequence[UnitSet], layer: int, n_units: int, n_prompts: int
) -> Bool[Tensor, "row unit"]:
    """Which units of a layer each row edits; rows run set by set, all prompts in each."""
    acting = torch.zeros(len(sets), n_units, dtype=torch.bool)
    for place, units in enumerate(sets):
        acting[place, [unit for at, unit in units if at == layer]] = True
    return acting.repeat_interleave(n_prompts, dim=0)


def _batch_values(
    model: HookedModel,
    run: RecordedRun,
    edit: HeadEdit,
    sets: Sequence[UnitSet],
    metrics: Sequence[Metric],
    *,
    freeze: bool,
) -> Float[Tensor, "metric prompt set"]:
    """Sets of units that begin in the same layer, each edited in all prompts of the run."""
    n_prompts, device = len(run.batch), run.batch.tokens.device
    n_units = count_units(model, edit.component)
    rows = torch.arange(n_prompts).repeat(len(sets)).to(device)
    layers = sorted({layer for units in sets for layer, _ in units})
    lowest, z = layers[0], None
    if edit.component == "z" and isinstance(edit, ActivationEdit):
        # What the lowest layer's heads read is as it was: only what they write changes.
        acting = _acting(sets, lowest, n_units, n_prompts).to(device)
        z = edit.merged(run.z[lowest, rows], lowest, rows, acting, run.start)
        layers = layers[1:]
    hooks = [
        edit.hook(layer, rows, _acting(sets, layer, n_units, n_prompts).to(device), run.start)
        for layer in layers
    ]
    if freeze:
        above = range(lowest + 1, model.cfg.n_layers)
        hooks += freeze_hooks(run, edit.changed, above, rows)
    tokens, metrics = narrow_metrics(metrics)
    needed = None if tokens is None else tokens.to(device)[rows]
    logits = resume(model, run, layer=lowest, rows=rows, hooks=hooks, z=z, tokens=needed)
    values = torch.empty(len(metrics), n_prompts, len(sets), dtype=result_dtype(model))
    for place in range(len(sets)):
        of_set = logits[place * n_prompts : (place + 1) * n_prompts]
        when = f"with {list(sets[place])} edited "
        for index, metric in enumerate(metrics):
            values[index, :, place] = apply_metric(metric, of_set, when=when).to(values)
    return values


def _batches(
    run: RecordedRun, groups: Sequence[Sequence[int]], demand: Demand, budget: Budget, workers: int
) -> list[list[int]]:
    """Each group of sets in batches of about the same size; the workers share the budget."""
    n_prompts, width = len(run.batch), run.batch.width
    fitting = demand.rows_within(budget, n_prompts, width - run.start, width)
    largest = max(1, fitting // workers // n_prompts)
    batches = []
    for group in groups:
        count = -(-len(group) // largest)
        size = -(-len(group) // count)
        batches += in_batches(group, size)
    return batches


def _by_first_layer(sets: Sequence[UnitSet]) -> dict[int, list[int]]:
    """Indices of the sets that edit something, by the lowest layer that they edit."""
    groups: dict[int, list[int]] = {}
    for index, units in enumerate(sets):
        if units:
            groups.setdefault(min(layer for layer, _ in units), []).append(index)
    return groups


@checked
@torch.no_grad()
def sweep_places(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    places: Bool[Tensor, "place prompt pos"],
    sets: Sequence[Sequence[Unit]],
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    budget: int | Budget | None = None,
    progress: bool = True,
    description: str = "units",
) -> Float[Tensor, "metric prompt set place"]:
    """Edit each set of units at each of several places; see ``sweep_sets``.

    A place is a set of columns per prompt, in the part of ``edit.changed``'s role; a prompt in
    which a place is empty gets NaN there. The later a place begins, the less is run again.
    """
    check_edit(edit)
    batch, component = batch_for(model, batch, "batch"), edit.component
    check_component(component, model)
    tuples = [tuple(pairs_of_numbers("units", units)) for units in listed("sets", sets)]
    metrics = listed("metrics", metrics)
    check_units(model, [unit for units in tuples for unit in units], component)
    if freeze and any(len(units) > 1 for units in tuples):
        raise UserError("path patching edits one head at a time: give sets of one head")
    if freeze and axis_of(component) != "head":
        raise UserError(f"path patching edits what heads write or read, not {component!r}")
    groups = list(_by_first_layer(tuples).values())
    largest = max((len(group) for group in groups), default=1)
    rows_per_prompt = min(largest, count_units(model, component))
    decided = decide_budget(budget, batch.tokens.device)
    demand = row_demand(
        model,
        rows_per_prompt,
        *_kept(freeze, component),
        edits=[component],
        logits=narrow_metrics(metrics)[0] is None,
    )
    chunks = chunk_prompts(places.any(dim=0), demand, metrics, decided)
    values = torch.empty(
        len(metrics), len(batch), len(tuples), len(places), dtype=result_dtype(model)
    )
    with (
        progress_bar(
            total=len(batch) * len(tuples) * len(places), description=description, shown=progress
        ) as bar,
        working(model, batch.tokens.device) as workers,
    ):
        sweep = _Sweep(model, tuples, groups, freeze, demand, decided, workers, bar)

        def run_chunk(prompts: list[int]) -> None:
            chunk = take_chunk(batch, edit, metrics, prompts)
            values[:, chunk.rows] = sweep.over(chunk, places[:, chunk.prompts, chunk.drop :])

        for _ in halving(chunks, run_chunk, divisible=can_take(metrics), bar=bar):
            pass
    return values


def _kept(freeze: bool, component: str) -> tuple[str, ...]:
    """What the run is recorded with, besides every layer's input."""
    return ("z",) if freeze or component == "z" else ()


@dataclass(frozen=True)
class _Sweep:
    """What stays the same for every chunk of prompts; ``groups`` are the sets that edit at all."""

    model: HookedModel
    sets: Sequence[UnitSet]
    groups: Sequence[Sequence[int]]
    freeze: bool
    demand: Demand
    budget: Budget
    workers: Workers
    bar: Any

    def over(
        self, chunk: Chunk, places: Bool[Tensor, "place prompt pos"]
    ) -> Float[Tensor, "metric prompt set place"]:
        """All sets at all places, in the chunk's prompts."""
        keep = _kept(self.freeze, chunk.edit.component)
        run = record_run(
            self.model,
            chunk.batch,
            start=first_column(places.any(dim=0)),
            keep=keep,
            edits=chunk.edit.hook_points,
        )
        dtype = result_dtype(self.model)
        unedited = [apply_metric(metric, run.logits).to("cpu", dtype) for metric in chunk.metrics]
        values = torch.stack(unedited)[:, :, None, None].repeat(1, 1, len(self.sets), len(places))
        n_editing = sum(len(group) for group in self.groups)
        for index, at in enumerate(places):
            there = at.any(dim=1).cpu()
            if bool(there.any()):
                self._edit_at(chunk, run, at, into=values[..., index])
            else:
                self.bar.update(len(chunk.batch) * n_editing)
            values[:, ~there, :, index] = torch.nan
            self.bar.update(len(chunk.batch) * (len(self.sets) - n_editing))
        return values

    def _edit_at(
        self,
        chunk: Chunk,
        run: RecordedRun,
        at: Bool[Tensor, "prompt pos"],
        into: Float[Tensor, "metric prompt set"],
    ) -> None:
        """Run the sets that edit something at one place, in batches, and put down the metrics."""
        edit = _placed(chunk.edit, at)
        run = run.narrowed(first_column(edit.changed))

        def batch_values(recorded: RecordedRun, some: list[int]) -> Tensor:
            sets = [self.sets[index] for index in some]
            return _batch_values(
                self.model, recorded, edit, sets, chunk.metrics, freeze=self.freeze
            )

        n_prompts, width = len(run.batch), run.batch.width

        def learn(n_sets: int) -> None:
            self.demand.learn(self.budget, n_sets * n_prompts, width - run.start, width)

        batches = _batches(run, self.groups, self.demand, self.budget, self.workers.count)
        for some, block in self.workers.run(run, batch_values, batches, learn=learn):
            into[:, :, some] = block
            self.bar.update(len(chunk.batch) * len(some))


def _placed(edit: HeadEdit, at: Bool[Tensor, "prompt pos"]) -> HeadEdit:
    """The edit at one place; an attention edit has no other place than its own."""
    return replace(edit, at=at) if isinstance(edit, ActivationEdit) else edit


@checked
def sweep_sets(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    sets: Sequence[Sequence[Unit]],
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    budget: int | Budget | None = None,
    progress: bool = True,
    description: str = "head sets",
) -> Float[Tensor, "metric prompt set"]:
    """Edit each set of units together and read the metrics; an empty set is the unedited run.

    Args:
        model: a hooked model.
        batch: the prompts.
        edit: what an edited unit does, and at which columns.
        sets: each a sequence of (layer, unit); units of ``edit.component``, by default heads.
        metrics: each Float[prompt d_vocab] → Float[prompt]; see ``interp.patching.metrics``.
        freeze: path patching; for sets of one head.
        budget: bytes that the call may take; by default as ``interp.forward.memory``.

    Returns:
        Float[metric prompt set], on the CPU; float64 for a model in float64, else float32.
    """
    check_edit(edit)
    return sweep_places(
        model,
        batch,
        edit,
        edit.changed[None],
        sets,
        metrics,
        freeze=freeze,
        budget=budget,
        progress=progress,
        description=description,
    )[..., 0]


@checked
def sweep_heads(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    heads: Sequence[Unit] | None = None,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit"]:
    """Edit each head (or unit of the edit's component) alone, as ``sweep_sets`` edits sets.

    Args:
        heads: only these (layer, head); the others are NaN.
    """
    return _swept_heads(
        model, batch, edit, metrics, freeze=freeze, heads=heads, budget=budget, progress=progress
    )[0]


def sweep_effects(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    heads: Sequence[Unit] | None = None,
    budget: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit"]:
    """As ``sweep_heads``, less the metrics of the unedited run that the edited ones began with."""
    edited, unedited = _swept_heads(
        model, batch, edit, metrics, freeze=freeze, heads=heads, budget=budget, progress=progress
    )
    return edited - unedited[:, :, None, None]


def _swept_heads(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    heads: Sequence[Unit] | None,
    **options: Any,
) -> tuple[Float[Tensor, "metric prompt layer unit"], Float[Tensor, "metric prompt"]]:
    check_edit(edit)
    batch, metrics = batch_for(model, batch, "batch"), listed("metrics", metrics)
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    heads = None if heads is None else pairs_of_numbers("heads", heads)
    if heads is None:
        heads = [(layer, unit) for layer in range(n_layers) for unit in range(n_units)]
    swept = sweep_sets(
        model,
        batch,
        edit,
        [[], *([head] for head in heads)],
        metrics,
        description="heads",
        **options,
    )
    values = swept.new_full((*swept.shape[:2], n_layers, n_units), torch.nan)
    for index, (layer, head) in enumerate(heads, start=1):
        values[:, :, layer, head] = swept[:, :, index]
    return values, swept[:, :, 0]


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
