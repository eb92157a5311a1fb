"""Prompts in chunks that fit the memory budget, and what of batch, edit and metrics is theirs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.memory import Budget
from interp.forward.sizes import sizes_of
from interp.models.hooked_model import HookedModel
from interp.patching.edits import HeadEdit, take_edit
from interp.patching.metrics import Metric, can_take, check_metrics, take_metrics

logger = logging.getLogger(__name__)

WORTHWHILE_ROWS = 48
"""A batch of so many rows runs about as efficiently as a larger one."""


@dataclass(frozen=True)
class Chunk:
    """Some of the prompts, at the width that they need.

    Attributes:
        prompts: which they are.
        batch, edit, metrics: theirs.
        drop: how many columns of the whole batch were cut away.
    """

    prompts: Int[Tensor, " prompt"]
    batch: TokenBatch
    edit: HeadEdit
    metrics: list[Metric]
    drop: int

    @property
    def rows(self) -> Int[Tensor, " prompt"]:
        """The prompts, on the CPU, where results are put together."""
        return self.prompts.cpu()


def take_chunk(
    batch: TokenBatch, edit: HeadEdit, metrics: Sequence[Metric], prompts: Sequence[int]
) -> Chunk:
    """What belongs to some of the prompts, by index."""
    index = torch.as_tensor(list(prompts), device=batch.tokens.device)
    part = batch.take(prompts)
    drop = batch.width - part.width
    return Chunk(index, part, take_edit(edit, index, drop=drop), take_metrics(metrics, index), drop)


def first_column(changed: Bool[Tensor, "prompt pos"]) -> int:
    """The first column of any prompt that can differ from the unedited run."""
    columns = changed.any(dim=0).nonzero()
    if len(columns) == 0:
        raise UserError("there is nothing to edit: no position is marked in any prompt")
    return int(columns[0])


@dataclass(frozen=True)
class Demand:
    """What a method takes of memory, by the columns that run again and those of the batch.

    Attributes:
        kept: ``kept(tail, width)``, bytes beside the batches for one prompt.
        row: ``row(tail, width)``, bytes of one row of a batch; None where there are no batches.
        rows_per_prompt: how many rows of one prompt are worth running together.
    """

    kept: Callable[[int, int], int]
    row: Callable[[int, int], int] | None
    rows_per_prompt: int

    def fits(self, n_prompts: int, tail: int, width: int, budget: Budget) -> bool:
        """Whether all rows of so many prompts run together."""
        batches = 0
        if self.row is not None:
            batches = n_prompts * self.rows_per_prompt * self.row(tail, width)
        limit, whole = budget.now
        return batches <= limit and n_prompts * self.least(tail, width) <= whole

    def learn(self, budget: Budget, n: int, tail: int, width: int) -> None:
        """So many rows, or prompts where there are no rows, ran out of memory: half is tried."""
        if self.row is None:
            budget.room.whole = n * self.least(tail, width) // 2
        else:
            budget.room.batches = n * self.row(tail, width) // 2

    def rows_within(self, budget: Budget, n_prompts: int, tail: int, width: int) -> int:
        """How many rows run together beside what is kept of so many prompts; at least one."""
        if self.row is None:
            return 1
        kept = n_prompts * self.kept(tail, width)
        return budget.rows(self.row(tail, width), kept=kept)

    def of(self, n_prompts: int, n_rows: int, tail: int, width: int) -> int:
        """Bytes of so many prompts with so many rows at a time."""
        rows = 0 if self.row is None else n_rows * self.row(tail, width)
        return n_prompts * self.kept(tail, width) + rows

    def least(self, tail: int, width: int) -> int:
        """Bytes of one prompt, one row at a time."""
        return self.of(1, 1, tail, width)


def row_demand(
    model: HookedModel,
    rows_per_prompt: int,
    *components: str,
    edits: Sequence[str],
    logits: bool = True,
) -> Demand:
    """Of a sweep that records runs with some components, and edits some."""
    sizes = sizes_of(model)
    eager = "pattern" in edits

    def kept(tail: int, width: int) -> int:
        recorded = sizes.kept(tail, width, *components)
        return recorded + sum(sizes.edit(one, tail, width) for one in edits)

    def row(tail: int, width: int) -> int:
        return sizes.row(tail, width, eager=eager, logits=logits)

    return Demand(kept, row, rows_per_prompt)


def graph_demand(model: HookedModel, component: str, *, places: int = 0) -> Demand:
    """Of gradients at a component in all layers, and of patterns at so many places beside them."""
    sizes = sizes_of(model)

    def kept(tail: int, width: int) -> int:
        graph = sizes.graph(tail, width, watched=component)
        changes = places * sizes.pattern_changes(tail, width)
        return graph + sizes.edit(component, tail, width) + changes

    return Demand(kept, None, model.cfg.n_layers)


def learning(
    demand: Demand, budget: Budget, changed: Bool[Tensor, "prompt pos"]
) -> Callable[[int], None]:
    """What ``halving`` tells of prompts that did not fit."""
    width = changed.shape[1]
    return lambda n: demand.learn(budget, n, width - first_column(changed), width)


def chunk_prompts(
    changed: Bool[Tensor, "prompt pos"],
    demand: Demand,
    metrics: Sequence[Metric],
    budget: Budget,
) -> list[list[int]]:
    """Prompts in chunks of similar tail length, of which all rows fit the budget if possible.

    The tail (from the first edited column to the end) is what is run again; sorting by it keeps
    the chunk's common start late. A metric that cannot be narrowed sees all prompts at once.

    Raises:
        UserError: a prompt without a position to edit, metrics of another number of prompts, or a
            budget, given by somebody, that is too small for one prompt.
    """
    check_metrics(metrics, len(changed))
    first_column(changed)
    if not bool(changed.any(dim=1).all()):
        bad = int((~changed.any(dim=1)).nonzero()[0])
        raise UserError(f"prompt {bad} has no position to edit")
    width = changed.shape[1]
    tails = (width - changed.long().argmax(dim=1)).tolist()
    if not can_take(metrics):
        _say_whole(demand.least(max(tails), width) * len(tails), len(tails), budget)
        return [list(range(len(tails)))]
    budget.refuse(demand.least(max(tails), width), width)
    chunks: list[list[int]] = [[]]
    for prompt in sorted(range(len(tails)), key=lambda prompt: tails[prompt]):
        chunk = chunks[-1]
        full = not demand.fits(len(chunk) + 1, tails[prompt], width, budget)
        # A longer tail makes the whole chunk longer: that is worth it for small batches only.
        longer = chunk and tails[prompt] > tails[chunk[-1]]
        if chunk and (full or (longer and len(chunk) * demand.rows_per_prompt >= WORTHWHILE_ROWS)):
            chunks.append([])
        chunks[-1].append(prompt)
    return chunks


def _say_whole(taken: int, n_prompts: int, budget: Budget) -> None:
    """Say so where a metric that sees all prompts at once takes more than the budget."""
    if taken > budget.whole:
        logger.warning(
            "the metric sees all %d prompts at once, which takes about %.3g MiB, over the budget "
            "of %.3g MiB; the metrics of interp.patching.metrics can be cut",
            n_prompts,
            taken / 2**20,
            budget.whole / 2**20,
        )
