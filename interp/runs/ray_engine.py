"""Shards computed by Ray workers, on this machine or on a cluster: the optional extra ``ray``.

Each worker (an actor) loads the model once, from its spec, and must find the same fingerprint. It
has at most ``IN_FLIGHT`` shards at a time, and shards return one by one to the process that started
the workers, which alone writes into the run. A worker that dies is started again, and its shards
are assigned again; their bytes do not depend on the worker, because every worker has the threads
and the memory budget that the run began with.

On GPUs a worker takes one, or as many as hold one model together, all of one machine. Ray lets it
see these only (CUDA_VISIBLE_DEVICES), so that their numbers begin with 0 in every worker.

Without an address a cluster is started on this machine, and stopped afterwards. Ray's dashboard and
its usage reports stay off.
"""

import importlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from interp.errors import UserError
from interp.forward.memory import Budget, current_budget, using_budget
from interp.jobs import Shard

IN_FLIGHT = 2
"""Shards that a worker has at a time: one to work on, one that waits."""
REACH_SECONDS = 10
RESTARTS = 3
"""How often a worker is started again, and a shard assigned again."""


def import_ray() -> Any:
    """The package. Raises UserError where it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # busy machines take their time
    # By default workers give way to whatever else runs, and beside a busy process never get ready.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'faithlens[ray]'") from error


class Worker:
    """Runs in a worker's process, as an actor of ``RayEngine``."""

    def __init__(
        self,
        load: Callable[[], Any],
        identify: Callable[[Any], str],
        expected: str,
        *,
        threads: int,
        budget: Budget | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self._budget = budget
        self._load, self._identify, self._expected = load, identify, expected
        self._model: Any = None

    def process(self) -> int:
        """The number of this worker's process."""
        return os.getpid()

    def visible_gpus(self) -> str | None:
        """The GPUs that Ray lets this worker see."""
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def make(self, work: Callable[[Any, Any], Shard], job: Any) -> Shard:
        """One shard; the first one waits for the model. Raises UserError for another model."""
        if self._model is None:
            model = self._load()
            if (found := self._identify(model)) != self._expected:
                raise UserError(
                    f"a worker found another model than this process ({found[:12]}…, not "
                    f"{self._expected[:12]}…): give every machine the same files"
                )
            self._model = model
        with using_budget(self._budget) if self._budget else nullcontext():
            return work(self._model, job)


class RayEngine:
    """Computes shards on the workers of a Ray cluster. A context manager that ends the workers.

    Args:
        load: makes the model on a worker; pickled.
        identify: gives the model's fingerprint; a function at module level.
        expected: the fingerprint that every worker must find.
        address: of a running cluster, such as ``auto`` or ``ray://host:10001``.
        workers: how many; by default as many as the cluster's processors (or GPUs) allow.
        gpus: of each worker, all of one machine.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        *,
        identify: Callable[[Any], str],
        expected: str,
        address: str | None = None,
        workers: int | None = None,
        gpus: int = 0,
    ) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"workers is {workers}: it must be at least 1")
        self._ray = import_ray()
        self._arguments = (load, identify, expected)
        self._address, self._workers, self._gpus = address, workers, gpus
        self._actors: list[Any] = []
        self._own_cluster = False

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._own_cluster:
            self._ray.shutdown()
            self._own_cluster = False

    def processes(self) -> list[int]:
        """The numbers of the workers' processes."""
        return self._ray.get([actor.process.remote() for actor in self._started()])

    def visible_gpus(self) -> list[str | None]:
        """The numbers of each worker's GPUs on its machine, as CUDA_VISIBLE_DEVICES has them."""
        return self._ray.get([actor.visible_gpus.remote() for actor in self._started()])

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """``work(model, job)`` for every numbered job, in the order in which they finish.

        Raises:
            UserError: the worker's own; a cluster that cannot be reached, or whose machines have
                too few GPUs; workers that keep dying.
        """
        waiting = iter(jobs)
        running: dict[Any, tuple[int, Any]] = {}
        first = next(waiting, None)
        if first is None:
            return
        idle = [actor for _ in range(IN_FLIGHT) for actor in self._started()]
        begun: list[tuple[int, Any]] = [first]
        try:
            while True:
                while idle and (job := begun.pop() if begun else next(waiting, None)) is not None:
                    actor = idle.pop(0)
                    running[actor.make.remote(work, job[1])] = (job[0], actor)
                if not running:
                    return
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                number, actor = running.pop(done)
                idle.append(actor)
                yield number, self._result(done)
        finally:
            for reference in running:
                self._ray.cancel(reference)

    def _result(self, reference: Any) -> Shard:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"Ray's workers keep dying ({first}): give them more memory, or fewer --workers; "
                "the same command again takes up what is finished"
            ) from error

    def _started(self) -> list[Any]:
        if self._actors:
            return self._actors
        self._connect()
        threads = torch.get_num_threads()
        resources = {"num_cpus": threads, "num_gpus": self._gpus}
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        check_machines(machines, self._gpus)
        count = self._workers or room(machines, threads, self._gpus)
        remote = self._ray.remote(**resources, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        options = {"threads": threads, "budget": current_budget()}
        self._actors = [remote(Worker).remote(*self._arguments, **options) for _ in range(count)]
        return self._actors

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        options: dict[str, Any] = {"address": self._address}
        if self._address is None:
            options = {"address": "local", "include_dashboard": False}
            if self._workers is not None:  # so many, even where processors are fewer
                options["num_cpus"] = self._workers * torch.get_num_threads()
        try:
            reach(self._address)
            self._ray.init(**options, log_to_driver=False, logging_level="error")
        except Exception as error:  # a start that takes too long is a bare Exception
            first = str(error).strip().splitlines()[0]
            where = self._address or "this machine"
            raise UserError(f"no Ray cluster at {where} ({first})") from error
        self._own_cluster = True


def reach(address: str | None) -> None:
    """Raise OSError if nothing listens at ``host:port``: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


def check_machines(machines: Iterable[Mapping[str, float]], gpus: int) -> None:
    """Raise UserError if no machine of a cluster has as many GPUs as a worker takes."""
    most = max((int(resources.get("GPU", 0)) for resources in machines), default=0)
    if gpus > most:
        raise UserError(
            f"a worker takes {gpus} GPU{'' if gpus == 1 else 's'} of one machine, and no machine "
            f"of the cluster has more than {most}: give a device map of fewer, or another cluster"
        )


def room(machines: Iterable[Mapping[str, float]], threads: int, gpus: int) -> int:
    """How many workers fit into a cluster, each into one machine; at least one, which may wait."""
    fitting = 0
    for resources in machines:
        here = int(resources.get("CPU", 0)) // threads
        fitting += min(here, int(resources.get("GPU", 0)) // gpus) if gpus else here
    return max(1, fitting)
