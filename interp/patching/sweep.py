"""Exact effect of editing each head alone: one value per metric, prompt, layer and head.

The plain loop costs (heads) × (full forward). The same numbers come from: the columns before the
first edited one run once; layers below the edited one not run again (``forward.resume``); all
heads of a layer in one batch; the unembedding of the last position only.

``freeze`` gives path patching as FAITH does it (arXiv 2402.19103, section 3.3; after Wang et al.
2022): at the columns where the edited head's output differs, every other head of every layer
keeps its output of the unedited run, while MLPs there, and everything at later columns, are
recomputed.

Values are the metrics themselves in the edited run, never differences.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.errors import UserError
from interp.patching.batch import TokenBatch, first_difference
from interp.patching.edits import HeadEdit, OutputEdit, output_hook_name, take_edit
from interp.patching.forward import Hook, HookFunction, RecordedRun, record_run, resume
from interp.patching.metrics import Metric, apply_metric, can_take, take_metrics

DEFAULT_BATCH_TOKENS = 4096

HeadTuple = tuple[tuple[int, int], ...]


def first_column(edit: HeadEdit) -> int:
    """The first column of any prompt that can differ from the unedited run."""
    columns = edit.changed.any(dim=0).nonzero()
    if len(columns) == 0:
        raise UserError("there is nothing to edit: no position is marked in any prompt")
    return int(columns[0])


def chunk_prompts(
    edit: HeadEdit, rows_per_prompt: int, batch_tokens: int, *, whole: bool = False
) -> list[list[int]]:
    """Prompts in chunks of similar tail length whose rows fit ``batch_tokens`` tokens.

    The tail (from the first edited column to the end) is what is run again; sorting by it keeps
    the chunk's common start late.
    """
    changed = edit.changed
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
        chunk = chunks[-1]
        if chunk and (len(chunk) + 1) * rows_per_prompt * tails[prompt] > batch_tokens:
            chunks.append([])
        chunks[-1].append(prompt)
    return chunks


def freeze_hooks(
    run: RecordedRun, changed: Bool[Tensor, "prompt pos"], layers: Sequence[int], rows: Tensor
) -> list[Hook]:
    """Hooks that hold every head of ``layers`` at its recorded output in the changed columns."""
    assert run.z is not None
    recorded = run.z
    where = changed[rows, run.start :, None, None]

    def hold(layer: int) -> HookFunction:
        def hook_function(z: Tensor, hook: object) -> Tensor:
            return torch.where(where, recorded[layer, rows], z)

        return hook_function

    return [(output_hook_name(layer), hold(layer)) for layer in layers]


def _group_values(
    model: Any,
    run: RecordedRun,
    edit: HeadEdit,
    sets: Sequence[HeadTuple],
    metrics: Sequence[Metric],
    *,
    freeze: bool,
    batch_tokens: int,
) -> Float[Tensor, "metric prompt set"]:
    """Sets of heads that begin in the same layer, each edited in all prompts of the run."""
    n_prompts, tail = len(run.batch), run.batch.width - run.start
    per_batch = max(1, batch_tokens // (tail * n_prompts))
    values = torch.empty(len(metrics), n_prompts, len(sets))
    for begin in range(0, len(sets), per_batch):
        some = sets[begin : begin + per_batch]
        # Rows run set by set, so that each set's rows are all the prompts in order.
        rows = torch.arange(n_prompts).repeat(len(some)).to(run.batch.tokens.device)
        hooks: list[Hook] = []
        for layer in sorted({layer for heads in some for layer, _ in heads}):
            acts = torch.zeros(len(some), model.cfg.n_heads, dtype=torch.bool)
            for place, heads in enumerate(some):
                acts[place, [head for at, head in heads if at == layer]] = True
            acts = acts.repeat_interleave(n_prompts, dim=0).to(rows.device)
            hooks.append(edit.hook(layer, rows, acts, run.start))
        lowest = min(layer for layer, _ in some[0])
        if freeze:
            above = range(lowest + 1, model.cfg.n_layers)
            hooks += freeze_hooks(run, edit.changed, above, rows)
        logits = resume(model, run, layer=lowest, rows=rows, hooks=hooks)
        for place in range(len(some)):
            of_set = logits[place * n_prompts : (place + 1) * n_prompts]
            for index, metric in enumerate(metrics):
                values[index, :, begin + place] = apply_metric(metric, of_set).float().cpu()
    return values


@torch.no_grad()
def sweep_sets(
    model: Any,
    batch: TokenBatch,
    edit: HeadEdit,
    sets: Sequence[Sequence[tuple[int, int]]],
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
    description: str = "head sets",
) -> Float[Tensor, "metric prompt set"]:
    """Edit each set of heads together and read the metrics; an empty set is the unedited run.

    Args:
        model: a TransformerLens bridge.
        batch: the prompts.
        edit: what an edited head does, and at which columns.
        sets: each a sequence of (layer, head).
        metrics: each Float[prompt d_vocab] → Float[prompt]; see ``interp.patching.metrics``.
        freeze: path patching (see the module's text); for sets of one head.
        batch_tokens: the most tokens that one forward pass runs, where a single prompt allows.

    Returns:
        Float[metric prompt set], float32 on the CPU.
    """
    tuples = [tuple((int(layer), int(head)) for layer, head in heads) for heads in sets]
    check_heads(model, [head for heads in tuples for head in heads])
    if freeze and any(len(heads) > 1 for heads in tuples):
        raise UserError("path patching edits one head at a time: give sets of one head")
    groups: dict[int, list[int]] = {}
    for index, heads in enumerate(tuples):
        if heads:
            groups.setdefault(min(layer for layer, _ in heads), []).append(index)
    empty = [index for index, heads in enumerate(tuples) if not heads]
    whole = not can_take(metrics)
    values = torch.full((len(metrics), len(batch), len(tuples)), torch.nan)
    largest = max((len(group) for group in groups.values()), default=1)
    chunks = chunk_prompts(edit, min(largest, model.cfg.n_heads), batch_tokens, whole=whole)
    with tqdm(total=len(batch) * len(tuples), desc=description, disable=not progress) as bar:
        for chunk in chunks:
            prompts = torch.as_tensor(chunk, device=batch.tokens.device)
            part = batch.take(chunk)
            part_edit = take_edit(edit, prompts, drop=batch.width - part.width)
            run = record_run(model, part, start=first_column(part_edit), keep_z=freeze)
            part_metrics = take_metrics(metrics, prompts)
            rows = prompts.cpu()[:, None]
            for index, metric in enumerate(part_metrics):
                unedited = apply_metric(metric, run.logits).float().cpu()
                values[index, rows, torch.as_tensor(empty, dtype=torch.long)[None, :]] = unedited[
                    :, None
                ]
            for group in groups.values():
                block = _group_values(
                    model, run, part_edit, [tuples[index] for index in group], part_metrics,
                    freeze=freeze, batch_tokens=batch_tokens,
                )  # fmt: skip
                values[:, rows, torch.as_tensor(group)[None, :]] = block
                bar.update(len(chunk) * len(group))
            bar.update(len(chunk) * len(empty))
    return values


def sweep_heads(
    model: Any,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    freeze: bool = False,
    heads: Sequence[tuple[int, int]] | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer head"]:
    """Edit each head alone and read the metrics; arguments as in ``sweep_sets``.

    Args:
        heads: only these (layer, head); the others are NaN.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if heads is None:
        heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    values = torch.full((len(metrics), len(batch), n_layers, n_heads), torch.nan)
    swept = sweep_sets(
        model, batch, edit, [[head] for head in heads], metrics,
        freeze=freeze, batch_tokens=batch_tokens, progress=progress, description="heads",
    )  # fmt: skip
    for index, (layer, head) in enumerate(heads):
        values[:, :, layer, head] = swept[:, :, index]
    return values


def check_heads(model: Any, heads: Sequence[tuple[int, int]]) -> None:
    """Raise for the first (layer, head) that the model does not have."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise UserError(
                f"head ({layer}, {head}) does not exist: the model has layers 0 to {n_layers - 1} "
                f"and heads 0 to {n_heads - 1}"
            )


@torch.no_grad()
def patch_heads(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupted: Int[Tensor, "corrupted_prompt corrupted_pos"],
    metric: Callable[[Tensor], Tensor],
    *,
    component: str = "z",
    mask: Tensor | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Float[Tensor, "prompt layer head"]:
    """Run ``corrupted`` with one head's output from ``clean`` at every position, for every head.

    The convention of TransformerLens' ``get_act_patch_attn_head_out_all_pos``, with the value of
    each prompt kept: the metric itself, not a difference.

    Args:
        clean, corrupted: token ids [prompt pos] of equal lengths, prompt by prompt.
        metric: last real position's logits Float[prompt d_vocab] → Float[prompt].
        component: "z", a head's output before the output projection.
        mask: [prompt pos], True on real tokens, if prompts are padded (left or right).

    Returns:
        Float[prompt layer head]; a prompt pair without any difference gets the unpatched metric.
    """
    if component != "z":
        raise UserError(f"component {component!r} is not known: z")
    if clean.shape != corrupted.shape:
        raise UserError(
            f"clean {tuple(clean.shape)} and corrupted {tuple(corrupted.shape)} differ in shape"
        )
    source = TokenBatch.from_padded(clean, mask)
    batch = TokenBatch.from_padded(corrupted, mask)
    first = first_difference(source, batch).clamp(max=batch.width - 1)
    columns = torch.arange(batch.width, device=batch.tokens.device)
    start = int(first.min())
    recorded = record_run(model, source, start=start)
    edit = OutputEdit(at=columns[None, :] >= first[:, None], source=recorded.z, first=start)
    values = sweep_heads(model, batch, edit, [metric], batch_tokens=batch_tokens, progress=progress)
    return values[0]
