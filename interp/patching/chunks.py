"""Cut a batch into chunks of prompts that fit the memory budget, and run a method on each."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.memory import Budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import RecordedRun, record_run
from interp.forward.sizes import sizes_of
from interp.forward.transfer import upload
from interp.models.hooked_model import HookedModel
from interp.patching.edits import HeadEdit, take_edit
from interp.patching.metrics import Metric, can_take, check_metrics, take_metrics

logger = logging.getLogger(__name__)

WORTHWHILE_ROWS = 48
"""A batch of this many rows runs about as efficiently as a larger one."""


@dataclass(frozen=True)
class Chunk:
    """Some of the prompts, padded only to the longest of them.

    Attributes:
        prompts: their indices in the whole batch, on its device.
        rows: the same on the CPU, where results are collected.
        batch, edit, metrics: narrowed to these prompts.
        drop: how many leading positions of the whole batch were cut away.
    """

    prompts: Int[Tensor, " prompt"]
    rows: Int[Tensor, " prompt"]
    batch: TokenBatch
    edit: HeadEdit
    metrics: list[Metric]
    drop: int

    @torch.no_grad()
    def record(
        self, model: HookedModel, *, edits: Sequence[str], keep: Sequence[str] = ()
    ) -> RecordedRun:
        """The chunk's unedited run, recorded from the first edited position on."""
        start = first_position(self.edit.changed)
        return record_run(model, self.batch, start=start, keep=keep, edits=edits)


def take_chunk(
    batch: TokenBatch, edit: HeadEdit, metrics: Sequence[Metric], *, prompts: Sequence[int]
) -> Chunk:
    """Batch, edit and metrics of some of the prompts, by index."""
    rows = torch.tensor(list(prompts))
    index, part = upload(rows, batch.tokens.device), batch.take(prompts)
    drop, taken = batch.width - part.width, take_metrics(metrics, index)
    return Chunk(index, rows, part, take_edit(edit, index, drop=drop), taken, drop)


def first_position(changed: Bool[Tensor, "prompt pos"]) -> int:
    """The first position of any prompt that can differ from the unedited run."""
    positions = changed.any(dim=0).nonzero()
    if len(positions) == 0:
        raise UserError("there is nothing to edit: no position is marked in any prompt")
    return int(positions[0])


@dataclass(frozen=True)
class Demand:
    """Memory that a method takes, in bytes.

    Attributes:
        kept: for one prompt, beside the batches that run.
        row: for one row of a batch; 0 for methods without batches of rows.
        rows_per_prompt: how many rows of one prompt are worth running together.
    """

    kept: int
    row: int
    rows_per_prompt: int

    @property
    def least(self) -> int:
        """One prompt, one row at a time."""
        return self.kept + self.row

    def fits(self, n_prompts: int, budget: Budget) -> bool:
        """Whether all rows of ``n_prompts`` prompts run together."""
        limit, whole = budget.now
        rows = n_prompts * self.rows_per_prompt * self.row
        return rows <= limit and n_prompts * self.least <= whole

    def rows_within(self, budget: Budget, n_prompts: int) -> int:
        """How many rows run together while ``n_prompts`` prompts are kept; at least one."""
        return budget.rows(self.row, kept=n_prompts * self.kept)

    def learn(self, budget: Budget, n: int) -> None:
        """Lower the budget to half of the ``n`` rows (or prompts) that ran out of memory."""
        if self.row:
            budget.room.batches = n * self.row // 2
        else:
            budget.room.whole = n * self.kept // 2


DemandAt = Callable[[int, int], Demand]
"""``demand(n_rerun, width)``: the demand where so many of a batch's positions run again."""


def row_demand(
    model: HookedModel,
    rows_per_prompt: int,
    *components: str,
    edits: Sequence[str],
    logits: bool = True,
) -> DemandAt:
    """Demand of a sweep that records runs with ``components`` and edits ``edits``."""
    sizes = sizes_of(model)

    def demand(n_rerun: int, width: int) -> Demand:
        kept = sizes.kept(n_rerun, width, *components)
        kept += sum(sizes.edit(name, n_rerun, width) for name in edits)
        row = sizes.row(n_rerun, width, eager="pattern" in edits, logits=logits)
        return Demand(kept, row, rows_per_prompt)

    return demand


def graph_demand(model: HookedModel, component: str, *, position_sets: int = 0) -> DemandAt:
    """Demand of gradients at a component in all layers.

    Args:
        position_sets: at how many of them new attention patterns are kept beside the graph.
    """
    sizes = sizes_of(model)

    def demand(n_rerun: int, width: int) -> Demand:
        graph = sizes.graph(n_rerun, width, watched=component)
        patterns = position_sets * sizes.pattern_changes(n_rerun, width)
        return Demand(
            graph + sizes.edit(component, n_rerun, width) + patterns, 0, model.cfg.n_layers
        )

    return demand


def run_chunks(
    run: Callable[[list[int]], None],
    changed: Bool[Tensor, "prompt pos"],
    demand: DemandAt,
    *,
    metrics: Sequence[Metric],
    budget: Budget,
    bar: Any = None,
) -> Iterator[object]:
    """Call ``run(prompts)`` for chunks of prompts; a chunk that does not fit is halved.

    An iterator: each step runs a chunk.

    Args:
        changed: where each prompt is edited.
        bar: a progress bar that ``run`` moves.

    Raises:
        UserError: see ``chunk_prompts``.
        OutOfMemory: one prompt does not fit, or metrics that need all prompts at once.
    """
    changed = changed.cpu()
    chunks = chunk_prompts(changed, demand, metrics=metrics, budget=budget)
    width = changed.shape[1]
    largest = demand(width - first_position(changed), width)
    # With rows, the budget learns from the batches of rows instead.
    learn = None if largest.row else lambda n: largest.learn(budget, n)
    return halving(chunks, run, divisible=can_take(metrics), bar=bar, learn=learn)


def chunk_prompts(
    changed: Bool[Tensor, "prompt pos"],
    demand: DemandAt,
    *,
    metrics: Sequence[Metric],
    budget: Budget,
) -> list[list[int]]:
    """Chunks of prompts, sorted by how many positions run again, that fit the budget.

    Positions run again from a prompt's first edited one to the end; sorting by their number keeps
    a chunk's common start late. A metric that cannot be narrowed sees all prompts at once.

    Raises:
        UserError: a prompt without a position to edit, metrics of another number of prompts, or a
            budget, given by the caller, that is too small for one prompt.
    """
    check_metrics(metrics, len(changed))
    changed = changed.cpu()
    first_position(changed)
    if not bool(changed.any(dim=1).all()):
        bad = int((~changed.any(dim=1)).nonzero()[0])
        raise UserError(f"prompt {bad} has no position to edit")
    width = changed.shape[1]
    lengths = (width - changed.long().argmax(dim=1)).tolist()
    least = demand(max(lengths), width).least
    if not can_take(metrics):
        taken = least * len(lengths)
        if taken > budget.whole:
            logger.warning(
                "the metric sees all %d prompts at once, which takes about %.3g MiB, over the "
                "budget of %.3g MiB; the metrics of interp.patching.metrics can be cut",
                *(len(lengths), taken / 2**20, budget.whole / 2**20),
            )
        return [list(range(len(lengths)))]
    budget.refuse(least, width)
    chunks: list[list[int]] = [[]]
    for prompt in sorted(range(len(lengths)), key=lambda prompt: lengths[prompt]):
        chunk = chunks[-1]
        of_prompt = demand(lengths[prompt], width)
        full = not of_prompt.fits(len(chunk) + 1, budget)
        # A longer prompt makes the whole chunk longer: worth it for small batches only.
        longer = chunk and lengths[prompt] > lengths[chunk[-1]]
        many = len(chunk) * of_prompt.rows_per_prompt >= WORTHWHILE_ROWS
        if chunk and (full or (longer and many)):
            chunks.append([])
        chunks[-1].append(prompt)
    return chunks
