"""Batches of a sweep in parallel on a CPU: one thread each, with its own copy of the plain modules.

Two threads inside every operation wait for each other after each operation; two batches in parallel
do not. Each batch runs on one thread whatever the number of workers, so that the numbers do not
depend on it. On a GPU, or where only the hooked model will do (which all threads would share), or
with a model whose layers are divided or offloaded, batches run one after the other.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from interp.forward.out_of_memory import halving, is_out_of_memory
from interp.forward.partial import RecordedRun
from interp.forward.unhooked import unhooked_model
from interp.models.hooked_model import HookedModel
from interp.models.placement import is_dispatched

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 16


class Workers:
    """Runs jobs that need a recorded run. Made by ``working``.

    Attributes:
        count: how many batches are in memory at once.
    """

    def __init__(self, model: HookedModel, executor: ThreadPoolExecutor | None, count: int) -> None:
        self._model, self._executor, self.count = model, executor, count
        self._of_thread = threading.local()

    def run(
        self,
        run: RecordedRun,
        function: Callable[[RecordedRun, list[Item]], Result],
        jobs: Sequence[Sequence[Item]],
        *,
        learn: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[list[Item], Result]]:
        """``function(run, job)`` for every job; a job is a sequence, and may be cut in two.

        A job that runs out of memory next to others runs again alone, and then by halves.

        Args:
            run: recorded with the hook points that the jobs edit.
            learn: see ``halving``.
        """
        plain, executor = run.plain, self._executor
        if executor is None or plain is None:
            return halving(jobs, partial(function, run), what="one row", learn=learn)

        def work(job: Sequence[Item]) -> Result:
            if not hasattr(self._of_thread, "plain"):
                way = {"wide": plain.wide, "fused": plain.fused}
                self._of_thread.plain = unhooked_model(self._model, **way)
            with torch.no_grad():
                return function(replace(run, plain=self._of_thread.plain), list(job))

        def in_parallel() -> Iterator[tuple[list[Item], Result]]:
            futures = [executor.submit(work, job) for job in jobs]
            failed: list[Sequence[Item]] = []
            try:
                for number, job in enumerate(jobs):
                    error = futures[number].exception()
                    if error is None:
                        yield list(job), futures[number].result()
                    elif is_out_of_memory(error):
                        failed.append(job)
                    else:
                        raise error
            finally:
                for future in futures:
                    future.cancel()
                # A failed one holds its exception, and with it the tensors of its frames.
                futures.clear()
                error = None
            # In a worker's thread as well: more threads would give other last bits.
            yield from halving(
                failed, lambda job: executor.submit(work, job).result(), what="one row", learn=learn
            )

        return in_parallel()


@contextmanager
def working(model: HookedModel, device: torch.device) -> Iterator[Workers]:
    """Workers for a sweep; as many as torch may use threads."""
    count = min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1
    if is_dispatched(model.original_model):
        count = 1  # hooks fetch weights into the modules that all threads would share
    if count < 2:
        yield Workers(model, None, 1)
        return
    with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) as executor:
        yield Workers(model, executor, count)
