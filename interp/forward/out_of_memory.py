"""Batches that are halved when memory runs out.

A memory budget is an estimate, and the free memory can change during a run. A batch that does not
fit is cut in two, and so is every later batch of that size; the values are those of the whole batch
up to rounding. Batches may be cut at two levels: where one unit at a time does not fit, the loop
over prompts around it tries fewer prompts. Only a single prompt that does not fit is an error.
"""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from interp.errors import UserError
from interp.forward.batch import RUN_TOKENS, TokenBatch, in_batches

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_SIGNS = (
    "out of memory",  # CUDA, ROCm, XPU and MPS, in kernels and in libraries
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",  # the same on Windows
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)
"""Texts of RuntimeErrors about memory; torch has a class for these on GPUs only."""


class OutOfMemory(UserError):
    """The smallest batch does not fit. ``reason`` is the allocator's message."""

    reason: str = ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on this machine."""
    if isinstance(error, OutOfMemory | MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def halving(
    batches: Iterable[Sequence[Item]],
    run: Callable[[list[Item]], Result],
    *,
    what: str = "one prompt",
    divisible: bool = True,
    bar: Any = None,
    learn: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[Item], Result]]:
    """Call ``run`` with every batch, in order; a batch that does not fit into memory is cut in two.

    ``run`` may be called again with a part of an earlier batch: it returns its result, or writes
    one that the next call overwrites.

    Args:
        what: names the smallest batch in a message.
        divisible: False where a batch must stay whole.
        bar: a progress bar that ``run`` updates; it is set back where ``run`` fails.
        learn: called with the number of items that did not fit.

    Yields:
        the items that ran together, and their result.

    Raises:
        OutOfMemory: a batch does not fit and cannot be cut.
    """
    most: int | None = None
    for batch in batches:
        waiting = [list(batch)]
        while waiting:
            items = waiting.pop(0)
            if most is not None and len(items) > most:
                middle = -(-len(items) // 2)
                waiting[:0] = [items[:middle], items[middle:]]
                continue
            before = None if bar is None else bar.n
            try:
                result = run(items)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = _first_line(error)
            else:
                yield items, result
                del result
                continue
            # Only here, where the exception is gone, are the tensors that its traceback held.
            if bar is not None:
                bar.n = before
                bar.refresh()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if learn is not None:
                learn(len(items))
            if len(items) < 2 or not divisible:
                failure = OutOfMemory(
                    f"out of memory with {what} ({reason}): give shorter prompts, a dtype of fewer "
                    "bytes (bfloat16), or a device with more memory"
                )
                failure.reason = reason
                raise failure
            most = -(-len(items) // 2)
            logger.warning("out of memory with %d at a time: on with %d", len(items), most)
            waiting.insert(0, items)


def over_parts(
    batch: TokenBatch,
    run: Callable[[TokenBatch, range], Result],
    *,
    batch_tokens: int = RUN_TOKENS,
    bar: Any = None,
) -> Iterator[Result]:
    """Call ``run(part, rows)`` with some prompts at a time, in order, all at the batch's width.

    Args:
        run: gets some prompts, and which rows of the batch they are; see ``halving``.
        batch_tokens: of one part, padding included, if the memory allows.
        bar: a progress bar that counts prompts.

    Raises:
        OutOfMemory: a single prompt does not fit.
    """

    def run_rows(rows: list[int]) -> Result:
        return run(batch.part(rows[0], rows[-1] + 1), range(rows[0], rows[-1] + 1))

    parts = in_batches(range(len(batch)), batch_tokens // batch.width)
    for rows, result in halving(parts, run_rows, what=f"one prompt of {batch.width} tokens"):
        if bar is not None:
            bar.update(len(rows))
        yield result


def _first_line(error: Exception) -> str:
    if isinstance(error, OutOfMemory):
        return error.reason
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 120 else f"{line[:120]}…"
