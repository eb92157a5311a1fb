"""Batches of a sweep side by side on a CPU: one thread each, with plain modules of its own.

Two threads inside every operation wait for each other after each of them; two batches side by side
do not. Each batch runs on one thread whatever the number of workers, so that the numbers do not
depend on it. On a GPU, or where only the hooked model will do (which all threads would share),
batches run one after the other.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from interp.forward.out_of_memory import halving, is_out_of_memory
from interp.forward.partial import RecordedRun
from interp.forward.unhooked import unhooked_model
from interp.models.hooked_model import HookedModel

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 16


class Workers:
    """Runs jobs that need a recorded run. Made by ``working``."""

    def __init__(self, model: HookedModel, executor: ThreadPoolExecutor | None, count: int) -> None:
        self._model, self._executor = model, executor
        self._own = threading.local()
        self.count = count
        """How many batches are in memory at once."""

    def run(
        self,
        run: RecordedRun,
        function: Callable[[RecordedRun, list[Item]], Result],
        jobs: Sequence[Sequence[Item]],
        *,
        learn: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[list[Item], Result]]:
        """``function(run, job)`` for every job; a job is a sequence, and may be cut in two.

        What runs out of memory beside the others runs again alone, and then by halves.

        The run was recorded with what the jobs edit, so that its plain modules have it.

        Args:
            learn: see ``halving``.
        """
        plain = run.plain
        if self._executor is None or plain is None:
            yield from halving(jobs, lambda job: function(run, job), what="one row", learn=learn)
            return

        def work(job: Sequence[Item]) -> Result:
            if not hasattr(self._own, "plain"):
                self._own.plain = unhooked_model(self._model, wide=plain.wide)
            with torch.no_grad():
                return function(replace(run, plain=self._own.plain), list(job))

        executor = self._executor
        futures = [executor.submit(work, job) for job in jobs]
        failed: list[Sequence[Item]] = []
        try:
            for number, job in enumerate(jobs):
                done = _result_of(futures[number])
                if done is None:
                    failed.append(job)
                else:
                    yield list(job), done[0]
        finally:
            for future in futures:
                future.cancel()
            # A failed one holds its exception, and with it the tensors of its frames.
            futures.clear()
        # In a worker's thread as well: more threads would give other last bits.
        yield from halving(
            failed, lambda job: executor.submit(work, job).result(), what="one row", learn=learn
        )


def _result_of(future: "Future[Result]") -> tuple[Result] | None:
    """What a job returned; None where memory ran out."""
    try:
        return (future.result(),)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


@contextmanager
def working(model: HookedModel, device: torch.device) -> Iterator[Workers]:
    """Workers for a sweep; as many as torch may use threads."""
    count = min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1
    if count < 2:
        yield Workers(model, None, 1)
        return
    with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) as executor:
        yield Workers(model, executor, count)
