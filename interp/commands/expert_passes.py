"""The slow passes of ``interp moelora analyze``: counting routing, and switching experts off.

Each saves its shards while it runs, and its results when it is finished; repeating an interrupted
call continues it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from interp.commands.adapted import AdaptedModel, OnHooked, RoutingJob, routing_shard
from interp.errors import UserError
from interp.experts.effects.effects import ExpertEffects, expert_effects
from interp.experts.routing.collect import CollectSettings, RoutingPass, collect_routing
from interp.experts.routing.corpus import LabelledCorpus
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputSimilarity
from interp.files.documents import write_table
from interp.files.tables import read_table
from interp.moelora.data.encoding import encode_example
from interp.moelora.data.examples import Example
from interp.moelora.projections import projections_of
from interp.patching.result import PatchEffects
from interp.runs.identity import conditions
from interp.runs.job_runner import StoredJobRunner
from interp.runs.shards import Engine, digest_of, remove_shards

logger = logging.getLogger(__name__)

PARTS = 4
"""Parts of the corpus, each of which is saved when it is finished."""
ROUTING_SHARDS = Path("shards") / "routing"
EFFECTS_SHARDS = Path("shards") / "effects"
LOSS, ACCURACY = "effects.safetensors", "effects_accuracy.safetensors"


def count_routing(
    run: Path,
    loaded: AdaptedModel,
    corpus: LabelledCorpus,
    *,
    identity: Mapping[str, object],
    engine: Engine,
    routers: int,
    seed: int,
    tokens: bool = False,
    progress: bool = True,
) -> tuple[RoutingRecords, OutputSimilarity]:
    """Run the model over the corpus; write ``routing.safetensors`` and ``similarity.csv``.

    Args:
        identity: the run's identity.
        routers: number of untrained routers to compare with.
        tokens: also write ``tokens.parquet``; then everything runs in this process, without shards.
    """
    counts, alike = run / "routing.safetensors", run / "similarity.csv"
    if counts.is_file() and alike.is_file():
        try:
            records = RoutingRecords.load(counts)
        except UserError as error:
            logger.warning("%s: routing is counted again", error)
        else:
            logger.info("routing: taken from %s", counts)
            table = read_table(
                alike,
                texts=("target",),
                counts=("layer", "expert", "other"),
                numbers=("cosine", "cka", "cka_chance"),
            )
            return records, OutputSimilarity(_sampled(records), table)
    collecting = CollectSettings(routers=routers, parts=PARTS, seed=seed)
    if tokens:
        records, similarity = collect_routing(
            loaded.model,
            corpus,
            loaded.tokenizer,
            settings=collecting,
            token_file=run / "tokens.parquet",
            progress=progress,
        )
    else:
        runner = StoredJobRunner(run / ROUTING_SHARDS, engine)
        job = RoutingJob(corpus, collecting, identity)
        total = RoutingPass(loaded.model, corpus, loaded.tokenizer, settings=collecting)
        for part in runner.shards(routing_shard, job, description="routing", progress=progress):
            total.add(part.tensors)
        records, similarity = total.result()
    write_table(alike, similarity.table)
    records.save(counts)
    remove_shards(run / ROUTING_SHARDS)
    return records, similarity


def _sampled(records: RoutingRecords) -> int:
    """The number of tokens that the similarities were measured on."""
    sampled = records.metadata.get("sampled", "")
    if not (sampled.isascii() and sampled.isdigit() and len(sampled) < 16):
        raise UserError("the routing records lack the number of tokens drawn: make the run again")
    return int(sampled)


def switch_experts_off(
    run: Path,
    loaded: AdaptedModel,
    tasks: Mapping[str, Sequence[Example]],
    *,
    identity: Mapping[str, object],
    engine: Engine,
    budget: int,
    seed: int,
    progress: bool = True,
) -> ExpertEffects:
    """The effect of each of the most important experts on each task, in three files ``effects…``.

    Args:
        identity: the run's identity.
        budget: how many experts are switched off one by one.
    """
    questions = {
        task: [asdict(encode_example(loaded.tokenizer, example)) for example in examples]
        for task, examples in tasks.items()
    }
    whole = digest_of({"run": identity, "tasks": questions})
    effects = _kept_effects(run, loaded, whole)
    if effects is None:
        stages = StoredJobRunner(run / EFFECTS_SHARDS, OnHooked(engine), conditions(loaded.hooked))
        effects = expert_effects(
            loaded.hooked, tasks, budget=budget, seed=seed, progress=progress, stages=stages
        )
        assert effects.accuracy is not None
        for name, result in ((LOSS, effects.loss), (ACCURACY, effects.accuracy)):
            replace(result, metadata={**result.metadata, "run": whole}).save(run / name)
        remove_shards(run / EFFECTS_SHARDS)
    write_table(run / "effects.csv", effects.to_dataframe())
    return effects


def _kept_effects(run: Path, loaded: AdaptedModel, whole: str) -> ExpertEffects | None:
    """The saved effects; None if a file is missing, damaged, or of another run."""
    paths = run / LOSS, run / ACCURACY
    if not all(path.is_file() for path in paths):
        return None
    try:
        loss, accuracy = (PatchEffects.load(path) for path in paths)
        for result, path in zip((loss, accuracy), paths, strict=True):
            if result.metadata.get("run") != whole:
                raise UserError(f"{path} holds the effects of another run")
    except UserError as error:
        logger.warning("%s: the effects are measured again", error)
        return None
    logger.info("effects of experts: taken from %s", paths[0])
    return ExpertEffects(loss, accuracy, projections=projections_of(loaded.hooked))
