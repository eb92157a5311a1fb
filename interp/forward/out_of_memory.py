"""Out of memory: half as many at a time, and on.

A budget is an estimate, and what is free can change while a run goes on. A batch that does not fit
is cut in two, and so is every later one that is as large; the values are those of the whole batch
up to rounding. Batches may be cut at two levels: where one unit at a time does not fit, what holds
several prompts around it tries fewer prompts. Only one prompt alone that does not fit is an error.
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
"""What a RuntimeError says that is about memory; torch has a class of its own on GPUs only."""


class OutOfMemory(UserError):
    """The smallest batch does not fit. ``reason`` is what the allocator said."""

    reason: str = ""

    @classmethod
    def of(cls, what: str, reason: str) -> "OutOfMemory":
        """With the message for this smallest batch."""
        error = cls(
            f"out of memory with {what} ({reason}): give shorter prompts, a dtype of fewer bytes "
            "(bfloat16), or a device with more memory"
        )
        error.reason = reason
        return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, of a GPU or of this machine."""
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
    """``run`` of every batch, in order; what does not fit into memory is cut in two.

    ``run`` may be called again with a part of what it has been given: it returns its result, or
    writes one that the next call writes over.

    Args:
        what: the smallest batch, for a message.
        divisible: False where a batch must stay whole.
        bar: a progress bar that ``run`` moves; it goes back where ``run`` fails.
        learn: is told of how many items did not fit.

    Yields:
        the items that ran together, and their result.

    Raises:
        OutOfMemory: a batch does not fit and cannot be cut.
    """
    most: int | None = None
    for batch in batches:
        waiting = [list(batch)]
        while waiting:
            now = waiting.pop(0)
            if most is not None and len(now) > most:
                waiting[:0] = _halves(now)
                continue
            done, reason = _attempt(run, now, bar)
            if reason is None:
                yield now, done  # type: ignore[misc]
                continue
            if learn is not None:
                learn(len(now))
            if len(now) < 2 or not divisible:
                raise OutOfMemory.of(what, reason)
            most = -(-len(now) // 2)
            logger.warning("out of memory with %d at a time: on with %d", len(now), most)
            waiting.insert(0, now)


def over_parts(
    batch: TokenBatch,
    run: Callable[[TokenBatch, range], Result],
    *,
    batch_tokens: int = RUN_TOKENS,
    bar: Any = None,
) -> Iterator[Result]:
    """``run(part, rows)`` of some prompts at a time, in order, all at the batch's width.

    Args:
        run: is given some prompts, and which rows of the batch they are; see ``halving``.
        batch_tokens: of one part, padding included, where there is memory for it.
        bar: counts prompts.

    Raises:
        OutOfMemory: one prompt alone does not fit.
    """
    whole = in_batches(range(len(batch)), batch_tokens // batch.width)

    def of_rows(rows: list[int]) -> Result:
        some = range(rows[0], rows[-1] + 1)
        return run(batch.part(some.start, some.stop), some)

    what = f"one prompt of {batch.width} tokens"
    for rows, done in halving(whole, of_rows, what=what):
        if bar is not None:
            bar.update(len(rows))
        yield done


def _attempt(
    run: Callable[[list[Item]], Result], items: list[Item], bar: Any
) -> tuple[Result | None, str | None]:
    """The result, or why there is none."""
    before = None if bar is None else bar.n
    try:
        return run(items), None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = error.reason if isinstance(error, OutOfMemory) else _first_words(error)
    # Only here, where the exception is gone, are the tensors that its traceback held.
    if bar is not None:
        bar.n = before
        bar.refresh()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, reason


def _first_words(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 120 else f"{line[:120]}…"


def _halves(items: list[Item]) -> list[list[Item]]:
    middle = -(-len(items) // 2)
    return [items[:middle], items[middle:]]
