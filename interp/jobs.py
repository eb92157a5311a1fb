"""Slow work as values: a job says what is done to which prompts, and a stage has it done.

``JobRunner`` does a job here and at once. A run directory has its own (``interp.runs.stages``),
which cuts the job into shards of prompts, keeps each as it is finished, and may have them made
elsewhere. The numbers are the same up to the last bits, which depend on the batch that a prompt
runs in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

SHARD = 16
"""Prompts of a shard, unless the work says otherwise."""


@dataclass(frozen=True)
class Shard:
    """What was made of some prompts.

    Attributes:
        tensors: their first axis is the prompts.
        texts: one for each prompt, or none.
        kept: of all of them together, as JSON can hold it; left out when shards are put together.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Sequence[str] = field(default=(), kw_only=True)
    kept: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class OutputSpec:
    """What a work makes: tensors, by the number of their axes, and perhaps texts."""

    tensors: Mapping[str, int] = field(default_factory=dict)
    texts: bool = False


@runtime_checkable
class Job(Protocol):
    """Prompts, and all that decides what is made of them, beside the model."""

    @property
    def shard(self) -> int:
        """How many prompts are done, and kept, together."""
        ...

    def order(self) -> Sequence[int]:
        """All prompts, so that those which run well together stand beside each other."""
        ...

    def take(self, prompts: Sequence[int]) -> "Job":
        """The same for some of the prompts."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the outcome, as JSON can hold it."""
        ...


@runtime_checkable
class JobFunction(Protocol):
    """A function of a module: what is made of a job's prompts, in their order."""

    __name__: str

    def __call__(self, model: Any, job: Any, *, progress: bool = False) -> Shard:
        """See the class."""
        ...


class JobRunner:
    """Does everything here and at once."""

    def made(
        self,
        work: JobFunction,
        model: Any,
        job: Job,
        *,
        description: str,
        gives: OutputSpec,
        progress: bool = True,
    ) -> Shard:
        """What ``work`` makes of all prompts of a job.

        Args:
            description: of the bar that shows progress, where shards are made.
            gives: what the work makes, against which shards from a file are checked.
        """
        return work(model, job, progress=progress)


RUN_HERE = JobRunner()
