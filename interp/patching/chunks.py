"""Prompts in chunks that fit the memory budget, and what of batch, edit and metrics is theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.arguments import whole_number
from interp.errors import UserError
from interp.patching.batch import TokenBatch
from interp.patching.budget import default_budget, rows_within
from interp.patching.edits import HeadEdit, take_edit
from interp.patching.metrics import Metric, can_take, check_metrics, take_metrics

WORTHWHILE_ROWS = 48
"""A batch of so many rows runs about as efficiently as a larger one."""

GRADIENT_BUDGETS = 4
"""Gradients of few prompts at a time are slow: by default they may take so many sweep budgets."""


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


def chunk_prompts(
    model: Any,
    changed: Bool[Tensor, "prompt pos"],
    rows_per_prompt: int,
    metrics: Sequence[Metric],
    budget: int | None,
) -> list[list[int]]:
    """Prompts in chunks of similar tail length, of which all rows fit the budget if possible.

    The tail (from the first edited column to the end) is what is run again; sorting by it keeps
    the chunk's common start late. A metric that cannot be narrowed sees all prompts at once.

    Raises:
        UserError: a prompt without a position to edit, metrics of another number of prompts, or a
            budget too small for one prompt.
    """
    check_metrics(metrics, len(changed))
    if budget is not None:
        budget = whole_number("budget, in bytes,", budget, least=1)
    first_column(changed)
    if not bool(changed.any(dim=1).all()):
        bad = int((~changed.any(dim=1)).nonzero()[0])
        raise UserError(f"prompt {bad} has no position to edit")
    width = changed.shape[1]
    tails = (width - changed.long().argmax(dim=1)).tolist()
    if not can_take(metrics):
        return [list(range(len(tails)))]
    chunks: list[list[int]] = [[]]
    for prompt in sorted(range(len(tails)), key=lambda prompt: tails[prompt]):
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


def gradient_chunks(
    model: Any,
    changed: Bool[Tensor, "prompt pos"],
    metrics: Sequence[Metric],
    budget: int | None,
) -> list[list[int]]:
    """As ``chunk_prompts``, for passes whose graph holds every layer at once."""
    if budget is None:
        budget = GRADIENT_BUDGETS * default_budget(changed.device)
    return chunk_prompts(model, changed, model.cfg.n_layers, metrics, budget)
