"""Slow work as values: a job says what is computed for which prompts, and a runner has it done.

``JobRunner`` runs a job here and at once. ``interp.runs.job_runner`` runs it in a run directory:
it cuts the job into shards of prompts, keeps each one, and may have other processes compute them.
The numbers are the same up to the last bits, which depend on the batch that a prompt runs in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

SHARD = 16
"""Prompts in a shard by default."""


@dataclass(frozen=True)
class Shard:
    """The results for some prompts.

    Attributes:
        tensors: their first axis is the prompts.
        texts: one for each prompt, or none.
        kept: facts about the results, as JSON can hold them. Of several shards together, only the
            facts on which all of them agree are kept.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Sequence[str] = field(default=(), kw_only=True)
    kept: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class OutputSpec:
    """Output of a job: the name and number of axes of each tensor, and whether it has texts."""

    tensors: Mapping[str, int] = field(default_factory=dict)
    texts: bool = False


@runtime_checkable
class Job(Protocol):
    """Prompts, and everything but the model that decides what is computed for them."""

    @property
    def prompts_per_shard(self) -> int:
        """How many prompts are computed, and kept, together."""
        ...

    def order(self) -> Sequence[int]:
        """All prompts, with those that run well together next to each other."""
        ...

    def take(self, prompts: Sequence[int]) -> "Job":
        """The same job for some of the prompts."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the results, as JSON can hold it."""
        ...


@runtime_checkable
class JobFunction(Protocol):
    """A function at module level that computes a job's results, in the order of its prompts."""

    __name__: str

    def __call__(self, model: Any, job: Any, *, progress: bool = False) -> Shard:
        """The job's results."""
        ...


class JobRunner:
    """Runs jobs here and at once."""

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
        """The results of ``function`` for all prompts of a job.

        Args:
            description: label of the progress bar over shards.
            output: what the function returns; shards that are read from files are checked with it.
        """
        return function(model, job, progress=progress)


RUN_HERE = JobRunner()
