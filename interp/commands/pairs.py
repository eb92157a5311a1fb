"""Pairs of texts as commands take them: read or made, answered by the model, kept in a run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

from interp.arguments import check_choice
from interp.errors import UserError
from interp.files.documents import write_jsonl
from interp.forward.partial import device_of
from interp.jobs import SHARD, JobRunner, OutputSpec, Shard
from interp.models.hooked_model import HookedModel
from interp.patching import EdgeEffects, PatchEffects
from interp.runs.clock import with_clock
from interp.runs.identity import begin_run, check_run
from interp.runs.resources import with_resources
from interp.runs.shards import digest_of
from interp.statistics.significance import mean_interval
from interp.tasks import EncodedPairs, Pairs, answered_right, encode_pairs, ioi_pairs, read_pairs
from interp.tasks.ioi import Corruption, check_corruption
from interp.tasks.patching import Metric

logger = logging.getLogger(__name__)

Keep = Literal["all", "right"]
IOI_PAIRS = 32


@dataclass(frozen=True)
class PairSettings:
    """Settings of commands that take pairs of texts; part of the run's identity."""

    pairs: str = "ioi"
    """ioi (indirect-object identification, made here), or a JSONL file: clean, corrupted, answer,
    wrong_answer, perhaps spans, group and template; or a file of MIB's tasks (JSONL, CSV,
    Parquet)."""
    metric: Metric = "logit_difference"
    """Of the answer against the wrong one, of the answer, or from the clean run's distribution."""
    keep: Keep = "all"
    """right: only the pairs whose clean text the model answers rightly."""
    chat: bool = False
    """Put each text into the model's chat template, as the user's words."""
    corruption: Corruption = "swap"
    """ioi: the second mention of the subject becomes the other name, or all names become others."""
    limit: int | None = None
    """How many pairs; by default all of a file, and 32 of ioi."""
    memory: float | None = None
    """MiB that one forward pass may take; by default what suits the machine."""
    seed: int = 0
    """Draws the pairs of ioi, resamples, and the bootstrap's samples."""
    shard: int = SHARD
    """Prompts in a shard, which is computed and saved as a whole; part of the run's identity."""

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, get_args(Metric))
        check_choice("keep", self.keep, get_args(Keep))
        check_corruption(self.corruption)
        for name in ("limit", "shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if self.memory is not None and not self.memory > 0:
            raise UserError(f"memory is {self.memory} MiB: it must be more than 0")

    @property
    def budget(self) -> int | None:
        """The memory in bytes."""
        return None if self.memory is None else int(self.memory * 2**20)


def load_pairs(settings: PairSettings, tokenizer: Any = None) -> Pairs:
    """The pairs that the settings name; generated pairs use names that fit the tokenizer."""
    if settings.pairs != "ioi":
        return read_pairs(settings.pairs, limit=settings.limit)
    return ioi_pairs(
        settings.limit or IOI_PAIRS,
        tokenizer=tokenizer,
        seed=settings.seed,
        corruption=settings.corruption,
    )


def encoded_pairs(model: HookedModel, settings: PairSettings) -> tuple[Pairs, EncodedPairs]:
    """The pairs that the settings name, and as tokens of a model."""
    pairs = load_pairs(settings, model.tokenizer)
    options: dict[str, Any] = {"chat": settings.chat, "device": device_of(model)}
    return pairs, encode_pairs(model.tokenizer, pairs, **options)


def answered_pairs(
    model: HookedModel,
    settings: PairSettings,
    pairs: Pairs,
    *,
    encoded: EncodedPairs,
    runner: JobRunner,
) -> tuple[Pairs, EncodedPairs, Tensor]:
    """The pairs that are kept, and of all of them whether the model answers rightly.

    Raises:
        UserError: none is, although only such pairs are kept.
    """
    answering = AnsweringJob(encoded)
    found = runner.run(right_shard, model, answering, description="answers", output=RIGHT)
    right = found.tensors["right"]
    if settings.keep == "all":
        return pairs, encoded, right
    kept = right.nonzero()[:, 0].tolist()
    if not kept:
        raise UserError(f"the model answers none of the {len(pairs)} pairs rightly")
    return pairs.take(kept), encoded.take(kept), right


@dataclass(frozen=True)
class AnsweringJob:
    """Pairs whose clean texts the model answers."""

    encoded: EncodedPairs

    @property
    def prompts_per_shard(self) -> int:
        """All pairs: they run together."""
        return len(self.encoded)

    def order(self) -> Sequence[int]:
        """The pairs as they are given."""
        return range(len(self.encoded))

    def take(self, prompts: Sequence[int]) -> "AnsweringJob":
        """The same job for some of the pairs."""
        return AnsweringJob(self.encoded.take(prompts))

    def identity(self) -> dict[str, Any]:
        """What decides the answers, beside the model."""
        return {"pairs": digest_of(self.encoded.content())}


RIGHT = OutputSpec({"right": 1})


def right_shard(model: HookedModel, job: AnsweringJob, *, progress: bool = False) -> Shard:
    """``right`` [pair]: whether the answer is likelier than the wrong one."""
    return Shard({"right": answered_right(model, job.encoded).cpu()})


def claim_pairs(
    run: Path, file: str, identity: Mapping[str, Any], *, pairs: Pairs, model: HookedModel
) -> None:
    """Write the run's identity and pairs. Raises UserError if the directory has others."""
    path = run / "pairs.jsonl"
    if path.is_file() and list(read_pairs(path)) != list(pairs):
        raise UserError(f"{run} was made with other pairs: choose another --out")
    check_run(run, file, identity)
    begin_run(run, file, with_clock(with_resources(identity, model), model.tokenizer))
    if not path.is_file():
        write_jsonl(path, [pair.row() for pair in pairs])


Result = TypeVar("Result", PatchEffects, EdgeEffects)


def kept_result(path: Path, kind: type[Result], *, digest: str) -> Result | None:
    """The result of this run that is in a file; None if it has to be made, or made again."""
    if not path.is_file():
        return None
    try:
        found = kind.load(path)
        if found.metadata.get("run") != digest:
            raise UserError(f"{path} holds the results of another run")
    except UserError as error:
        logger.warning("%s: they are made again", error)
        return None
    logger.info("taken from %s", path)
    return found


def mean_metrics(
    clean: Tensor, corrupted: Tensor, groups: Sequence[str], *, seed: int
) -> dict[str, list[float]]:
    """The mean metric of the clean and of the corrupted runs, with 95 % intervals."""
    return {
        name: list(mean_interval(values.numpy(), groups, seed=seed))
        for name, values in (("clean", clean), ("corrupted", corrupted))
    }
