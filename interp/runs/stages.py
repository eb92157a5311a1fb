"""The slow parts of a run, kept in its directory shard by shard as they are finished.

What a shard belongs to is decided by its content's causes (model, prompts, what is done to them),
so that the same command again, and another one that needs the same work, takes it from there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.runs.shards import Engine, ShardStore, cut, make_shards, put_together
from interp.stages import Job, Shard, Stages, Work


@dataclass(frozen=True)
class StoredStages(Stages):
    """Stages in a directory of a run.

    Attributes:
        folder: the directory of their files.
        engine: where shards are made, with a model of its own; the one that ``made`` is given is
            not used.
        fingerprint: the model's.
    """

    folder: Path
    engine: Engine
    fingerprint: str

    def made(
        self, work: Work, model: Any, job: Job, *, description: str, progress: bool = True
    ) -> Shard:
        """What ``work`` makes of all prompts of a job, put together from shards."""
        parts = cut(job.order(), job.shard)
        identity = {
            "model": self.fingerprint,
            "work": work.__name__,
            "shard": job.shard,
            "job": job.identity(),
        }
        store = ShardStore(self.folder, identity, len(parts))
        shards = make_shards(
            store, self.engine, work, lambda number: job.take(parts[number]),
            description=description, progress=progress,
        )  # fmt: skip
        return put_together(shards, parts)
