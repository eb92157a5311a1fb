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

Values are the metrics themselves in the edited run, never differences.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.errors import UserError
from interp.patching.batch import TokenBatch
from interp.patching.budget import bytes_per_row, default_budget, rows_within
from interp.patching.components import axis_of, check_component, count_units, hook_name
from interp.patching.edits import ActivationEdit, HeadEdit, scores_hook_name, take_edit
from interp.patching.forward import Hook, HookFunction, RecordedRun, record_run, resume
from interp.patching.metrics import (
    Metric,
    apply_metric,
    can_take,
    narrow_metrics,
    take_metrics,
)
from interp.patching.workers import working

Unit = tuple[int, int]
UnitSet = tuple[Unit, ...]

WORTHWHILE_ROWS = 48
"""A batch of so many rows runs about as efficiently as a larger one."""


def first_column(changed: Bool[Tensor, "prompt pos"]) -> int:
    """The first column of any prompt that can differ from the unedited run."""
    columns = changed.any(dim=0).nonzero()
    if len(columns) == 0:
        raise UserError("there is nothing to edit: no position is marked in any prompt")
    return int(columns[0])


def chunk_prompts(
    model: Any,
    changed: Bool[Tensor, "prompt pos"],
    rows_per_prompt: int,
    budget: int | None,
    *,
    whole: bool = False,
) -> list[list[int]]:
    """Prompts in chunks of similar tail length, of which all rows fit the budget if possible.

    The tail (from the first edited column to the end) is what is run again; sorting by it keeps
    the chunk's common start late.

    Raises:
        UserError: a prompt without a position to edit, or a budget too small for one prompt.
    """
    if not bool(changed.any(dim=1).all()):
        bad = int((~changed.any(dim=1)).nonzero()[0])
        raise UserError(f"prompt {bad} has no position to edit")
    width = changed.shape[1]
    tails = (width - changed.long().argmax(dim=1)).tolist()
    order = sorted(range(len(tails)), key=lambda prompt: tails[prompt])
    if whole:
        return [list(range(len(tails)))]
    chunks: list[list[int]] = [[]]
    for prompt in order:
        rows = rows_within(
            model, tail=tails[prompt], width=width, budget=budget, device=changed.device
        )
        chunk = chunks[-1]
        full = (len(chunk) + 1) * rows_per_prompt > rows
        # A longer tail makes the whole chunk longer: that is worth it for small batches only.
        longer = chunk and tails[prompt] > tails[chunk[-1]]
        if chunk and (full or (longer and len(chunk) * rows_per_prompt >= WORTHWHILE_ROWS)):
            chunks.append([])
        chunks[-1].append(prompt)
    return chunks


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
    model: Any,
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
    values = torch.empty(len(metrics), n_prompts, len(sets))
    for place in range(len(sets)):
        of_set = logits[place * n_prompts : (place + 1) * n_prompts]
        for index, metric in enumerate(metrics):
            values[index, :, place] = apply_metric(metric, of_set).float().cpu()
    return values


def _batches(
    model: Any, run: RecordedRun, groups: Sequence[Sequence[int]], budget: int | None, workers: int
) -> list[list[int]]:
    """Each group of sets in batches of about the same size that fit the budget together."""
    n_prompts, width, device = len(run.batch), run.batch.width, run.batch.tokens.device
    share = None if budget is None else budget // workers
    if share is None and workers > 1:
        share = default_budget(device) // workers
    # One prompt alone may take all of a budget that several workers would have shared.
    tail = width - run.start
    share = None if share is None else max(share, bytes_per_row(model, tail, width))
    rows_within(model, tail=tail, width=width, budget=budget, device=device)
    fitting = rows_within(model, tail=tail, width=width, budget=share, device=device)
    largest = max(1, fitting // n_prompts)
    batches = []
    for group in groups:
        count = -(-len(group) // largest)
        size = -(-len(group) // count)
        batches += [list(group[begin : begin + size]) for begin in range(0, len(group), size)]
    return batches


def _by_first_layer(sets: Sequence[UnitSet]) -> dict[int, list[int]]:
    """Indices of the sets that edit something, by the lowest layer that they edit."""
    groups: dict[int, list[int]] = {}
    for index, units in enumerate(sets):
        if units:
            groups.setdefault(min(layer for layer, _ in units), []).append(index)
    return groups


@torch.no_grad()
def sweep_places(
    model: Any,
    batch: TokenBatch,
    edit: HeadEdit,
    places: Bool[Tensor, "place prompt pos"],
    sets: Sequence[Sequence[Unit]],
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    budget: int | None = None,
    progress: bool = True,
    description: str = "units",
) -> Float[Tensor, "metric prompt set place"]:
    """Edit each set of units at each of several places; see ``sweep_sets``.

    A place is a set of columns per prompt, in the part of ``edit.changed``'s role; a prompt in
    which a place is empty gets NaN there. The later a place begins, the less is run again.
    """
    component = edit.component
    check_component(component, model)
    tuples = [tuple((int(layer), int(unit)) for layer, unit in units) for units in sets]
    check_units(model, [unit for units in tuples for unit in units], component)
    if freeze and any(len(units) > 1 for units in tuples):
        raise UserError("path patching edits one head at a time: give sets of one head")
    if freeze and axis_of(component) != "head":
        raise UserError(f"path patching edits what heads write or read, not {component!r}")
    groups = _by_first_layer(tuples)
    empty = torch.as_tensor([i for i, units in enumerate(tuples) if not units], dtype=torch.long)
    values = torch.full((len(metrics), len(batch), len(tuples), len(places)), torch.nan)
    largest = max((len(group) for group in groups.values()), default=1)
    rows_per_prompt = min(largest, count_units(model, component))
    chunks = chunk_prompts(
        model, places.any(dim=0), rows_per_prompt, budget, whole=not can_take(metrics)
    )
    keep = ("z",) if freeze or component == "z" else ()
    needs = hook_name(component, 0) if isinstance(edit, ActivationEdit) else scores_hook_name(0)
    total = len(batch) * len(tuples) * len(places)
    with (
        tqdm(total=total, desc=description, disable=not progress) as bar,
        working(model, batch.tokens.device) as workers,
    ):
        for chunk in chunks:
            prompts = torch.as_tensor(chunk, device=batch.tokens.device)
            part = batch.take(chunk)
            drop = batch.width - part.width
            part_places = places[:, prompts, drop:]
            part_metrics = take_metrics(metrics, prompts)
            part_edit = take_edit(edit, prompts, drop=drop)
            run = record_run(model, part, start=first_column(part_places.any(dim=0)), keep=keep)
            rows = prompts.cpu()[:, None]
            unedited = [apply_metric(metric, run.logits).float().cpu() for metric in part_metrics]
            for index, at in enumerate(part_places):
                there = at.any(dim=1).cpu()
                bare = torch.where(there, torch.stack(unedited), torch.nan)
                values[:, rows, empty[None, :], index] = bare[:, :, None]
                if not bool(there.any()):
                    bar.update(len(chunk) * len(tuples))
                    continue
                own_edit = _placed(part_edit, at)
                own_run = run.narrowed(first_column(own_edit.changed))

                def batch_values(
                    recorded: RecordedRun,
                    some: list[int],
                    edit: HeadEdit = own_edit,
                    metrics: Sequence[Metric] = part_metrics,
                ) -> Tensor:
                    sets = [tuples[index] for index in some]
                    return _batch_values(model, recorded, edit, sets, metrics, freeze=freeze)

                batches = _batches(model, own_run, list(groups.values()), budget, workers.count)
                done = workers.run(own_run, batch_values, batches, needs=needs)
                for some, block in zip(batches, done, strict=True):
                    block[:, ~there] = torch.nan
                    values[:, rows, torch.as_tensor(some)[None, :], index] = block
                    bar.update(len(chunk) * len(some))
                bar.update(len(chunk) * len(empty))
    return values


def _placed(edit: HeadEdit, at: Bool[Tensor, "prompt pos"]) -> HeadEdit:
    """The edit at one place; an attention edit has no other place than its own."""
    return replace(edit, at=at) if isinstance(edit, ActivationEdit) else edit


def sweep_sets(
    model: Any,
    batch: TokenBatch,
    edit: HeadEdit,
    sets: Sequence[Sequence[Unit]],
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    budget: int | None = None,
    progress: bool = True,
    description: str = "head sets",
) -> Float[Tensor, "metric prompt set"]:
    """Edit each set of units together and read the metrics; an empty set is the unedited run.

    Args:
        model: a TransformerLens bridge.
        batch: the prompts.
        edit: what an edited unit does, and at which columns.
        sets: each a sequence of (layer, unit); units of ``edit.component``, by default heads.
        metrics: each Float[prompt d_vocab] → Float[prompt]; see ``interp.patching.metrics``.
        freeze: path patching (see the module's text); for sets of one head.
        budget: bytes that one forward pass may take; by default as ``interp.patching.budget``.

    Returns:
        Float[metric prompt set], float32 on the CPU.
    """
    if not bool(edit.changed.any(dim=1).all()):
        bad = int((~edit.changed.any(dim=1)).nonzero()[0])
        raise UserError(
            "there is nothing to edit: no position is marked in any prompt"
            if not bool(edit.changed.any())
            else f"prompt {bad} has no position to edit"
        )
    return sweep_places(
        model, batch, edit, edit.changed[None], sets, metrics,
        freeze=freeze, budget=budget, progress=progress, description=description,
    )[..., 0]  # fmt: skip


def sweep_heads(
    model: Any,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    heads: Sequence[Unit] | None = None,
    budget: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit"]:
    """Edit each head (or unit of the edit's component) alone; arguments as in ``sweep_sets``.

    Args:
        heads: only these (layer, head); the others are NaN.
    """
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    if heads is None:
        heads = [(layer, unit) for layer in range(n_layers) for unit in range(n_units)]
    values = torch.full((len(metrics), len(batch), n_layers, n_units), torch.nan)
    swept = sweep_sets(
        model, batch, edit, [[head] for head in heads], metrics,
        freeze=freeze, budget=budget, progress=progress, description="heads",
    )  # fmt: skip
    for index, (layer, head) in enumerate(heads):
        values[:, :, layer, head] = swept[:, :, index]
    return values


def check_units(model: Any, units: Sequence[Unit], component: str = "z") -> None:
    """Raise for the first (layer, unit) that the model does not have."""
    n_layers, n_units = model.cfg.n_layers, count_units(model, component)
    what = "head" if component in ("z", "q", "pattern") else "unit"
    for layer, unit in units:
        if not (0 <= layer < n_layers and 0 <= unit < n_units):
            raise UserError(
                f"{what} ({layer}, {unit}) does not exist: the model has layers 0 to "
                f"{n_layers - 1} and {what}s 0 to {n_units - 1}"
            )
