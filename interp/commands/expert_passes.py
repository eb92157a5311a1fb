"""The slow passes of ``interp moelora analyze``: counting routing, and switching experts off.

Each is kept shard by shard while it is made, and in whole files when it is finished; the same call
again takes up what is there.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from interp.commands.adapted import AdaptedModel, OnHooked, RoutingJob, routing_shard
from interp.errors import UserError
from interp.experts.effects.effects import ExpertEffects, expert_effects
from interp.experts.routing.collect import CollectSettings, RoutingSum, collect_routing
from interp.experts.routing.corpus import LabelledCorpus
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputSimilarity
from interp.files import read_table
from interp.files.documents import write_table
from interp.moelora.data.encoding import encode_example
from interp.moelora.data.examples import Example
from interp.moelora.projections import projections_of
from interp.patching.result import PatchEffects
from interp.runs.model_conditions import conditions
from interp.runs.shards import Engine, ShardStore, digest_of, finish_shards, remove_shards
from interp.runs.stages import StoredJobRunner

logger = logging.getLogger(__name__)

PARTS = 4
"""The corpus is counted in so many parts, each of which is kept when it is finished."""
ROUTING_SHARDS = Path("shards") / "routing"
EFFECTS_SHARDS = Path("shards") / "effects"
LOSS, ACCURACY = "effects.safetensors", "effects_accuracy.safetensors"


def count_routing(
    run: Path,
    loaded: AdaptedModel,
    corpus: LabelledCorpus,
    identity: Mapping[str, object],
    engine: Engine,
    *,
    routers: int,
    seed: int,
    tokens: bool = False,
    progress: bool = True,
) -> tuple[RoutingRecords, OutputSimilarity]:
    """The pass over the corpus: ``routing.safetensors`` and ``similarity.csv``.

    Args:
        identity: what the run is.
        routers: untrained routers that are compared with.
        tokens: write ``tokens.parquet`` too; all is then done here, and in one go.
    """
    counts, alike = run / "routing.safetensors", run / "similarity.csv"
    if counts.is_file() and alike.is_file():
        try:
            records = RoutingRecords.load(counts)
        except UserError as error:
            logger.warning("%s: routing is counted again", error)
        else:
            logger.info("routing: taken from %s", counts)
            return records, OutputSimilarity(_sampled(records), _similarities(alike))
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
        whole = {"run": identity, "corpus": digest_of(asdict(corpus))}
        store = ShardStore(run / ROUTING_SHARDS, whole, PARTS)
        finish_shards(
            store,
            engine,
            routing_shard,
            lambda number: RoutingJob(corpus, collecting, number),
            description="routing",
            progress=progress,
        )
        total = RoutingSum(loaded.model, corpus, loaded.tokenizer, collecting)
        for number in range(PARTS):
            total.add(store.finished(number).tensors)
        records, similarity = total.result()
    write_table(alike, similarity.table)
    records.save(counts)
    remove_shards(run / ROUTING_SHARDS)
    return records, similarity


def _sampled(records: RoutingRecords) -> int:
    """How many tokens the similarities are of."""
    sampled = records.metadata.get("sampled", "")
    if not (sampled.isascii() and sampled.isdigit() and len(sampled) < 16):
        raise UserError("the routing records do not say how many tokens were drawn: make it again")
    return int(sampled)


def _similarities(path: Path) -> pd.DataFrame:
    return read_table(
        path,
        texts=("target",),
        counts=("layer", "expert", "other"),
        numbers=("cosine", "cka", "cka_chance"),
    )


def switch_experts_off(
    run: Path,
    loaded: AdaptedModel,
    tasks: Mapping[str, Sequence[Example]],
    identity: Mapping[str, object],
    engine: Engine,
    *,
    budget: int,
    seed: int,
    progress: bool = True,
) -> ExpertEffects:
    """What each of the most important experts does to each task, in three files ``effects…``.

    Args:
        identity: what the run is.
        budget: how many experts are switched off one by one.
    """
    questions = {
        task: [asdict(encode_example(loaded.tokenizer, one)) for one in some]
        for task, some in tasks.items()
    }
    whole = digest_of({"run": identity, "tasks": questions})
    effects = _kept_effects(run, loaded, whole)
    if effects is None:
        stages = StoredJobRunner(run / EFFECTS_SHARDS, OnHooked(engine), conditions(loaded.hooked))
        effects = expert_effects(
            loaded.hooked, tasks, budget=budget, seed=seed, progress=progress, stages=stages
        )
        assert effects.accuracy is not None
        for name, one in ((LOSS, effects.loss), (ACCURACY, effects.accuracy)):
            replace(one, metadata={**one.metadata, "run": whole}).save(run / name)
        remove_shards(run / EFFECTS_SHARDS)
    write_table(run / "effects.csv", effects.to_dataframe())
    return effects


def _kept_effects(run: Path, loaded: AdaptedModel, whole: str) -> ExpertEffects | None:
    """The effects in the files, unless one is not there, is damaged, or is another run's."""
    paths = run / LOSS, run / ACCURACY
    if not all(path.is_file() for path in paths):
        return None
    try:
        loss, accuracy = (PatchEffects.load(path) for path in paths)
        for one, path in zip((loss, accuracy), paths, strict=True):
            if one.metadata.get("run") != whole:
                raise UserError(f"{path} holds the effects of another run")
    except UserError as error:
        logger.warning("%s: the effects are measured again", error)
        return None
    logger.info("effects of experts: taken from %s", paths[0])
    return ExpertEffects(loss, accuracy, projections=projections_of(loaded.hooked))
