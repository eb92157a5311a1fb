"""Jobs of a run, kept shard by shard in its directory.

A shard belongs to what decides its content: the model, the prompts and what is done to them. The
same command again, and another command that needs the same results, take it from its file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files.tensors import check_tensors
from interp.forward.batch import in_batches
from interp.jobs import Job, JobFunction, JobRunner, OutputSpec, Shard
from interp.runs.shards import Engine, ShardStore, finish_shards, put_together


@dataclass(frozen=True)
class StoredJobRunner(JobRunner):
    """Runs jobs in a directory of a run.

    Attributes:
        folder: the directory of the shards' files.
        engine: where shards are computed, with its own model; the model given to ``run`` is unused.
        conditions: what the model is; see ``interp.runs.identity``.
        used: the files that were needed so far.
    """

    folder: Path
    engine: Engine
    conditions: Mapping[str, str] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)

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
        """The results of ``function`` for all prompts of a job, put together from shards.

        Raises:
            UserError: shards that ``function`` cannot have computed.
        """
        parts = in_batches(job.order(), job.prompts_per_shard)
        shards = list(self.shards(function, job, description=description, progress=progress))
        whole = put_together(shards, parts)
        try:
            check_tensors(whole.tensors, **(output.tensors if parts else {}))
            if parts and output.texts != bool(whole.texts):
                raise UserError("texts in place of numbers, or none")
        except UserError as error:
            raise UserError(
                f"the shards in {self.folder} are not of this sweep ({error}): remove them, and "
                "give the command again"
            ) from error
        return whole

    def shards(
        self, function: JobFunction, job: Job, *, description: str, progress: bool = True
    ) -> Iterator[Shard]:
        """The finished shards of a job in order, each read when it is asked for."""
        parts = in_batches(job.order(), job.prompts_per_shard)
        identity = {
            "model": dict(self.conditions),
            "work": function.__name__,
            "shard": job.prompts_per_shard,
            "job": job.identity(),
        }
        store = ShardStore(self.folder, identity, len(parts))
        self.used.update(map(store.path, range(len(parts))))
        finish_shards(
            store,
            self.engine,
            function,
            job=lambda number: job.take(parts[number]),
            description=description,
            progress=progress,
        )
        return map(store.finished, range(len(parts)))

    def remove_others(self) -> None:
        """Remove the shards that were not used: of other versions, dtypes or settings."""
        for path in self.folder.glob("*.safetensors"):
            if path not in self.used:
                path.unlink(missing_ok=True)
