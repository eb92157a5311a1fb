"""A rehearsal: a command runs in a temporary directory, and each of its jobs on few prompts only.

The command is the one that makes the run, so that a plan cannot leave out a stage. Its jobs come to
a ``PlanningEngine``, which runs a few prompts, twice at different numbers of them after a warm-up,
and gives back results of the right shape: those of the few prompts, over and over. Later stages
then work with stand-ins (other heads than the run will find, as many), which takes as long.
"""

import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError
from interp.files.links import check_links
from interp.forward.memory import CPU_WHOLE
from interp.jobs import Job, JobFunction, JobRunner, OutputSpec, Shard
from interp.runs.plan import REST, START, Cost, Plan, Stage
from interp.runs.shards import Engine
from interp.runs.usage import (
    Measured,
    PassCounter,
    Passes,
    folder_bytes,
    measuring,
    peak_memory,
)

SMALL = 2
"""Prompts of the warm-up and of the smaller measurement."""
SHARE = 8
"""The larger measurement has one in so many of a job's prompts, up to a whole shard."""
PROBE_SECONDS = 10.0
"""About the longest that the larger measurement may take."""
DECIDING_SAMPLE, DECIDING_SECONDS = 64, 8.0
"""Prompts of a job that decides how many prompts there are; more while they take so few seconds. Of
64 facts, half of them known, the share has a standard error of 6 %."""
PER_PROMPT = ("groups", "templates")
"""Lists in what shards keep that have an entry for each prompt."""


def evenly(n: int, count: int) -> list[int]:
    """``count`` of the numbers below ``n``, evenly spaced."""
    return [(2 * index + 1) * n // (2 * count) for index in range(count)]


def repeated(shard: Shard, n: int, of: int) -> Shard:
    """Results for ``of`` prompts as results for ``n``: over and over."""
    if n == of:
        return shard
    index = torch.arange(n) % of
    answers: Any = shard.texts or ()
    texts = [answers[row] for row in index.tolist() if answers]
    kept = {
        name: [value[row] for row in index.tolist()] if name in PER_PROMPT else value
        for name, value in shard.kept.items()
    }
    tensors = {name: tensor[index] for name, tensor in shard.tensors.items()}
    return Shard(tensors, texts=texts, kept=kept)


class Ledger:
    """What was measured, and what the run will take by that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counter = PassCounter()
        self.stages: dict[str, Stage] = {}
        self.sampled = Measured()
        self.memory, self.disk_while = 0, 0
        self._warm: set[str] = set()

    def add(self, name: str, prompts: int, passes: Passes, seconds: float) -> None:
        """Add to a stage of the run."""
        before = self.stages.get(name, Stage(name, 0, Passes(), 0.0))
        self.stages[name] = Stage(
            name, before.prompts + prompts, before.passes + passes, before.seconds + seconds
        )

    def note_disk(self) -> None:
        """Look at how large the run directory is by now."""
        self.disk_while = max(self.disk_while, folder_bytes(self.folder))

    def measure(self, work: Callable[[], Any]) -> tuple[Any, Measured]:
        """Do a piece of work on a sample, which is not counted among all else."""
        with measuring(self.counter) as found:
            value = work()
        self.sampled.seconds += found.seconds
        self.sampled.passes += found.passes
        self.memory = max(self.memory, found.memory)
        return value, found

    def estimate(
        self,
        name: str,
        sizes: Sequence[int],
        run: Callable[[list[int]], Any],
        *,
        key: str = "",
        deciding: bool = False,
    ) -> tuple[Any, int]:
        """Measure some work at two numbers of prompts, and add what all of it will take.

        Args:
            name: of the stage.
            sizes: how many prompts run together, for every time that the work is done.
            run: does it for some of the prompts, by their numbers below the median of ``sizes``.
            key: work of the same key is warmed up once.
            deciding: whether the results decide how much work there is later: then as many prompts
                run as take a few seconds.

        Returns:
            the results of the larger measurement, and how many prompts it had.
        """
        total, largest = sum(sizes), max(sizes)
        here = sorted(sizes)[len(sizes) // 2]
        small = min(SMALL, here)
        excess = 0.0
        if total <= 2 * SMALL:
            value, found = self.measure(lambda: run(list(range(here))))
            self.add(name, total, found.passes.times(total / here), found.seconds * len(sizes))
            return value, here
        _, first = self.measure(lambda: run(evenly(here, small)))
        low = first
        if (key or name) not in self._warm:
            self._warm.add(key or name)
            _, low = self.measure(lambda: run(evenly(here, small)))
            excess = max(0.0, first.seconds - low.seconds)
        each = max(low.seconds / small, 1e-6)
        if deciding:
            wanted = max(DECIDING_SAMPLE, int(DECIDING_SECONDS / each))
        else:
            # A GPU's batches grow with its free memory: only a whole shard shows their size.
            part = total if torch.cuda.is_initialized() else -(-total // SHARE)
            wanted = max(2 * small, part, small + 1)
            wanted = max(min(wanted, int(PROBE_SECONDS / each)), small + 1)
        large = min(here, wanted)
        value, high = self.measure(lambda: run(evenly(here, large)))
        cost = Cost.through((small, low.seconds), (large, high.seconds))
        seconds = sum(map(cost.of, sizes)) + excess
        self.add(name, total, high.passes.times(total / large), seconds)
        if large < largest:
            growth = max(0, high.memory - low.memory) / max(1, large - small)
            further = min(growth * (largest - large), CPU_WHOLE)
            self.memory = max(self.memory, int(high.memory + further))
        return value, large

    def take_whole(self, name: str, run: Callable[[], Any]) -> Any:
        """Do a piece of work that cannot be cut, and add what it took."""
        value, found = self.measure(run)
        self.add(name, 1, found.passes, found.seconds)
        return value


class PlanningEngine:
    """An engine that runs a few prompts of each sweep by another engine, and repeats their results.

    Args:
        inner: runs them.
        names: of stages, by the name of the function that computes a shard.
    """

    def __init__(self, ledger: Ledger, inner: Engine, names: Callable[[str], str]) -> None:
        self._ledger, self._inner, self._names = ledger, inner, names

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """Shards of the right shape for every job, in order."""
        waiting = list(jobs)
        if not waiting:
            return
        function = _function_of(work)
        name, key = self._names(function), function
        sizes = [len(job.order()) for _, job in waiting]
        if waiting[0][1].prompts_per_shard == 1:  # shards that cannot be cut
            for number, job in waiting:
                yield number, self._ledger.take_whole(name, partial(self._do, work, job))
        else:
            job = waiting[sizes.index(sorted(sizes)[len(sizes) // 2])][1]
            value, n = self._ledger.estimate(
                name, sizes, lambda rows: self._do(work, job.take(rows)), key=key
            )
            for (number, _), size in zip(waiting, sizes, strict=True):
                yield number, repeated(value, size, n)
        self._ledger.note_disk()

    def _do(self, work: Callable[[Any, Any], Shard], job: Any) -> Shard:
        ((_, shard),) = self._inner.run(work, [(0, job)])
        return shard


class PlanningRunner(JobRunner):
    """Runs a sample of a job that is not kept in shards, and repeats its results."""

    def __init__(self, ledger: Ledger, names: Callable[[str], str]) -> None:
        self._ledger, self._names = ledger, names

    def run(
        self,
        function: JobFunction,
        model: Any,
        job: Job,
        *,
        description: str,
        output: OutputSpec,
        progress: bool = True,
    ) -> Shard:
        """Results of the right shape for all prompts of a job."""
        size = len(job.order())
        if not size:
            return function(model, job, progress=False)
        value, n = self._ledger.estimate(
            self._names(function.__name__),
            [size],
            lambda rows: function(model, job.take(rows), progress=False),
            deciding=True,
        )
        return repeated(value, size, n)


class Rehearsal:
    """A context in which a command is run for its plan.

    Args:
        run: the run directory, which is only read.
        names: of stages, by the name of the function that computes their shards.
        before: seconds that the program's start and the model's loading have taken.

    Attributes:
        folder: give it to the command in place of the run directory; it begins as a copy of it, so
            that what is there already is not planned again.
        runner: for jobs that are not kept in shards.
    """

    def __init__(self, run: Path, *, names: Callable[[str], str], before: float = 0.0) -> None:
        self.run, self._names, self._before = run, names, before
        self._stack = ExitStack()

    def __enter__(self) -> "Rehearsal":
        above = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="plan-")))
        self.folder = above / "run"
        try:
            self._copy()
        except BaseException:
            self._stack.close()
            raise
        self.ledger = Ledger(self.folder)
        self.runner = PlanningRunner(self.ledger, self._names)
        self._stack.enter_context(self.ledger.counter)
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about the repeated results
        for package in ("interp", "probes"):
            self._quiet(logging.getLogger(package))
        self._begin = time.perf_counter()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._body = time.perf_counter() - self._begin
            self._disk = folder_bytes(self.folder)
            self._memory = peak_memory()
        finally:
            self._stack.close()
        if isinstance(error, UserError) and str(self.folder) in str(error):
            message = str(error).replace(str(self.folder), str(self.run))
            raise UserError(message) from error

    def engine(self, inner: Engine) -> PlanningEngine:
        """The engine for the command, which runs samples by ``inner``."""
        return PlanningEngine(self.ledger, inner, self._names)

    def plan(self) -> Plan:
        """The plan, when the context has been left."""
        ledger = self.ledger
        left = ledger.counter.passes - ledger.sampled.passes
        rest = Stage(REST, 0, left, max(0.0, self._body - ledger.sampled.seconds))
        start = Stage(START, 0, Passes(), self._before)
        memory = {**self._memory, "cpu": max(self._memory["cpu"], ledger.memory)}
        return Plan(
            stages=(start, *ledger.stages.values(), rest),
            memory=memory,
            disk=self._disk,
            disk_while=max(self._disk, ledger.disk_while),
            planning=self._body,
        )

    def _copy(self) -> None:
        if self.run.is_dir():
            check_links(self.run)
            shutil.copytree(self.run, self.folder, ignore=shutil.ignore_patterns(".lock*"))
        elif self.run.exists():
            shutil.copy(self.run, self.folder)  # a file: the command says what is wrong with it

    def _quiet(self, logger: logging.Logger) -> None:
        self._stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)  # what is said of repeated results would mislead


def _function_of(work: Any) -> str:
    """The name of the function that computes shards, inside a ``partial`` that moves it."""
    while isinstance(work, partial):
        work = work.args[0]
    return work.__name__
