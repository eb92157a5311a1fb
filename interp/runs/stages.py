"""The slow parts of a run, kept in its directory shard by shard as they are finished.

What a shard belongs to is decided by its content's causes (model, prompts, what is done to them),
so that the same command again, and another one that needs the same work, takes it from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from interp.errors import UserError
from interp.files import check_tensors
from interp.jobs import Job, JobFunction, JobRunner, OutputSpec, Shard
from interp.models.hooked_model import HookedModel
from interp.runs.shards import Engine, ShardStore, cut, make_shards, put_together


@dataclass(frozen=True)
class StoredJobRunner(JobRunner):
    """JobRunner in a directory of a run.

    Attributes:
        folder: the directory of their files.
        engine: where shards are made, with a model of its own; the one that ``made`` is given is
            not used.
        conditions: what the model is; see ``interp.runs.model_conditions``.
        asked: the files that were asked for so far.
    """

    folder: Path
    engine: Engine
    conditions: Mapping[str, str]
    asked: set[Path] = field(default_factory=set)

    def made(
        self,
        work: JobFunction,
        model: HookedModel,
        job: Job,
        *,
        description: str,
        gives: OutputSpec,
        progress: bool = True,
    ) -> Shard:
        """What ``work`` makes of all prompts of a job, put together from shards.

        Raises:
            UserError: shards that the work cannot have made.
        """
        parts = cut(job.order(), job.shard)
        identity = {
            "model": dict(self.conditions),
            "work": work.__name__,
            "shard": job.shard,
            "job": job.identity(),
        }
        store = ShardStore(self.folder, identity, len(parts))
        self.asked.update(map(store.path, range(len(parts))))
        shards = make_shards(
            store,
            self.engine,
            work,
            lambda number: job.take(parts[number]),
            description=description,
            progress=progress,
        )
        whole = put_together(shards, parts)
        try:
            check_tensors(whole.tensors, **(gives.tensors if parts else {}))
            if parts and gives.texts != bool(whole.texts):
                raise UserError("texts in place of numbers, or none")
        except UserError as error:
            raise UserError(
                f"the shards in {self.folder} are not of this sweep ({error}): remove them, and "
                "give the command again"
            ) from error
        return whole

    def remove_others(self) -> None:
        """Remove the shards that nobody asked for: of other versions, dtypes or settings."""
        for path in self.folder.glob("*.safetensors"):
            if path not in self.asked:
                path.unlink(missing_ok=True)
