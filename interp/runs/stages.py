"""The slow parts of an evaluation, kept in the run directory as they are finished.

A sweep over head sets is kept shard by shard, answers are kept when all questions of a kind are
answered. What a file belongs to is decided by its content's causes (model, prompts, heads, mode),
so that the same command again, and another one that needs the same sweep, takes it from there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.evaluation.stages import PreferenceJob, Stages, preference_values
from interp.runs.shards import (
    SHARD,
    Engine,
    Shard,
    ShardStore,
    cut,
    digest_of,
    digest_of_tokens,
    make_shards,
    put_together,
)


@dataclass(frozen=True)
class StoredStages(Stages):
    """Stages in a directory of a run.

    Attributes:
        folder: the directory of their files.
        engine: where sweeps are done; answers are given in this process.
        fingerprint: the model's.
    """

    folder: Path
    engine: Engine
    fingerprint: str

    def values(self, model: Any, job: PreferenceJob, *, progress: bool = True) -> Tensor:
        """The metrics [metric prompt set], put together from shards."""
        if job.constraint.mode == "mean" and job.mean is None:
            raise ValueError("the mean is over all prompts: take it before they are cut apart")
        parts = cut(job.encoded.by_length(job.kind))
        store = ShardStore(self.folder, self._identity(job), len(parts))
        shards = make_shards(
            store, self.engine, preference_shard, lambda number: job.take(parts[number]),
            description=f"{job.kind} premises", progress=progress,
        )  # fmt: skip
        return put_together(shards, parts)["values"].transpose(0, 1).contiguous()

    def texts(self, about: Mapping[str, Any], make: Callable[[], list[str]]) -> list[str]:
        """The texts of an earlier call, or what ``make`` returns."""
        identity = {"model": self.fingerprint, "texts": about}
        store = ShardStore(self.folder, identity, 1)
        found = store.read(0)
        if found is None:
            found = Shard(kept={"texts": make()})
            store.write(0, found)
        return list(found.kept["texts"])

    def _identity(self, job: PreferenceJob) -> dict[str, Any]:
        encoded, constraint = job.encoded, job.constraint
        return {
            "model": self.fingerprint,
            "prompts": [digest_of_tokens(encoded.batch(kind)) for kind in (job.kind, "masked")],
            "answers": [encoded.true_tokens.tolist(), encoded.false_tokens.tolist()],
            "objects": [item.prompt(job.kind).object for item in encoded.items],
            "setting": [constraint.site, constraint.mode, constraint.factor],
            "sets": [heads.heads for heads in job.sets],
            "mean": None if job.mean is None else digest_of(job.mean.tolist()),
            "budget": job.budget,
            "shard": SHARD,
        }


def preference_shard(model: Any, job: PreferenceJob) -> Shard:
    """The metrics of some prompts under every head set, [prompt metric set]."""
    return Shard({"values": preference_values(model, job, progress=False).transpose(0, 1)})
