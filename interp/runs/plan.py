"""A plan: what a run will take, stage by stage, estimated before it is made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from interp.runs.usage import Passes

START, REST = "start, model", "all else (statistics, tables)"


@dataclass(frozen=True)
class Cost:
    """What a number of prompts that run together take, in seconds (or bytes): fixed + each · n."""

    fixed: float
    each: float

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> "Cost":
        """The line through two measurements (n, value); where noise would make a part negative,
        it is zero, and the other one is that of the larger measurement."""
        (n, value), (n_large, value_large) = small, large
        if n_large == n:
            return cls(0.0, value_large / n_large)
        each = (value_large - value) / (n_large - n)
        fixed = value_large - each * n_large
        if each < 0:
            return cls(value_large, 0.0)
        return cls(fixed, each) if fixed > 0 else cls(0.0, value_large / n_large)

    def of(self, n: int) -> float:
        """The value for ``n`` prompts."""
        return self.fixed + self.each * n


@dataclass(frozen=True)
class Stage:
    """One kind of work in a run. ``prompts`` counts a prompt as often as a job takes it up."""

    name: str
    prompts: int
    passes: Passes
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        stages: in the order in which they run.
        memory: by device, the largest number of bytes held at once; ``cpu`` is the resident size of
            the process.
        disk: bytes of the run directory in the end.
        disk_while: bytes of the run directory at its largest, with its shards or checkpoints.
        planning: seconds that the plan took, without those of the program's start and the model.
    """

    stages: tuple[Stage, ...]
    memory: Mapping[str, int]
    disk: int
    disk_while: int
    planning: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def passes(self) -> Passes:
        """Of the whole run."""
        return sum((stage.passes for stage in self.stages), Passes())

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON can hold them."""
        return {**asdict(self), "seconds": self.seconds, "passes": asdict(self.passes)}
