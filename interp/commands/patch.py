"""``interp patch`` as a function: from pairs of texts to a run directory with every unit's effect.

The run holds the pairs that were used, the effects per prompt, a table of units, a summary and a
figure. Effects are made a shard of prompts at a time, each of which is a whole file, so that the
same call again takes up what an interrupted one finished; another model, other pairs or other
settings in the same directory are refused.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from interp.commands.dtype_check import N_PROMPTS, Measure, note_dtype_check
from interp.errors import UserError
from interp.files.choice import check_choice
from interp.files.documents import read_json, write_atomically, write_json, write_jsonl, write_table
from interp.forward.hook_points import Component, check_component
from interp.forward.memory import using_budget
from interp.forward.partial import device_of
from interp.jobs import SHARD, Shard
from interp.models.hooked_model import HookedModel
from interp.patching import PatchEffects
from interp.patching.patch_source import PatchSource, check_patch_source
from interp.patching.unit_effects import Method, check_method
from interp.report.patch_page import render_patch
from interp.runs.clock import one_moment, with_clock
from interp.runs.identity import begin_run, check_run, model_identity
from interp.runs.lock import one_process
from interp.runs.manifest import read_manifest, write_manifest
from interp.runs.model_conditions import conditions
from interp.runs.pass_memory import budget_entry, budget_of, with_budget
from interp.runs.prompting import PROMPTS, noted_prompts
from interp.runs.shards import (
    Engine,
    InProcess,
    ShardStore,
    cut,
    digest_of,
    make_shards,
    remove_shards,
)
from interp.runs.threads import threads_of, using_threads, with_threads
from interp.statistics.significance import MINIMUM_GROUPS, mean_interval
from interp.tasks import EncodedPairs, Pairs, answered_right, encode_pairs, ioi_pairs, read_pairs
from interp.tasks.ioi import Corruption, check_corruption
from interp.tasks.patching import Metric, Where, patch_pairs, positions_of

logger = logging.getLogger(__name__)

Keep = Literal["all", "right"]
IDENTITY = "patch.json"
IOI_PAIRS = 32
SHARDS = Path("shards") / "patch"
SHOWN = 10
FDR = 0.05


@dataclass(frozen=True)
class PatchSettings:
    """What decides the outcome of ``interp patch``; part of the run's identity."""

    pairs: str = "ioi"
    """ioi (indirect-object identification, made here), or a JSONL file: clean, corrupted, answer,
    wrong_answer, perhaps spans, group and template."""
    component: Component = "z"
    """What is patched; z is a head's output, k and v are patched by key/value group."""
    method: Method = "exact"
    """exact: one run a unit; attribution, ig, atp*: by gradient; screen: the gradient ranks all
    units, exact patching verifies the first."""
    positions: Where = "all"
    """All positions at once, each alone, or each of the pairs' named spans."""
    metric: Metric = "logit_difference"
    """Of the answer against the wrong one, of the answer, or from the clean run's distribution."""
    source: PatchSource = "run"
    """Where patched values come from: the clean run, nothing, a mean, another prompt's run."""
    keep: Keep = "all"
    """right: only the pairs whose clean text the model answers rightly."""
    chat: bool = False
    """Put each text into the model's chat template, as the user's words."""
    corruption: Corruption = "swap"
    """ioi: the second mention of the subject becomes the other name, or all names become others."""
    limit: int | None = None
    """How many pairs; by default all of a file, and 32 of ioi."""
    steps: int = 8
    """Steps of ig."""
    top_k: int = 20
    """How many units screen verifies."""
    memory: float | None = None
    """MiB that one forward pass may take; by default what suits the machine."""
    seed: int = 0
    """Draws the pairs of ioi, resamples, and the bootstrap's samples."""
    shard: int = SHARD
    """Prompts whose effects are made, and kept, together; part of what the run is."""

    def __post_init__(self) -> None:
        for name, known in (("positions", Where), ("metric", Metric), ("keep", Keep)):
            check_choice(name, getattr(self, name), known)
        check_component(self.component)
        check_method(self.method)
        check_patch_source(self.source, self.component)
        check_corruption(self.corruption)
        for name in ("limit", "steps", "top_k", "shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if self.memory is not None and not self.memory > 0:
            raise UserError(f"memory is {self.memory} MiB: it must be more than nothing")

    @property
    def sliced(self) -> bool:
        """Whether some of the prompts can be done apart from the others.

        Not where values come from other prompts, where a ranking is over all prompts, or where
        positions are counted in the columns of the whole batch.
        """
        return (
            self.source in ("run", "zero")
            and self.method != "screen"
            and (self.positions != "each")
        )


def load_pairs(settings: PatchSettings, tokenizer: Any = None) -> Pairs:
    """The pairs that the settings name; made ones with names that fit the tokenizer."""
    if settings.pairs != "ioi":
        return read_pairs(settings.pairs, limit=settings.limit)
    return ioi_pairs(
        settings.limit or IOI_PAIRS,
        tokenizer=tokenizer,
        seed=settings.seed,
        corruption=settings.corruption,
    )


@one_process
@one_moment(IDENTITY)
def patch_run(
    model: HookedModel,
    settings: PatchSettings,
    run: Path,
    *,
    engine: Engine | None = None,
    check_dtype: bool = True,
    progress: bool = True,
) -> PatchEffects:
    """Patch every unit of a component on pairs, and leave it all in ``run``.

    Args:
        engine: where the shards of effects are made; by default in this process.
        check_dtype: compare a run of another dtype with float32 at its end.

    Raises:
        UserError: pairs that do not fit, another run in the directory, a model that answers none
            of the pairs rightly where only those were asked for.
    """
    pairs = load_pairs(settings, model.tokenizer)
    encoded = encode_pairs(model.tokenizer, pairs, chat=settings.chat, device=device_of(model))
    check_component(settings.component, model)
    positions_of(encoded, settings.positions)
    identity = {**asdict(settings), **model_identity(model)}
    check_run(run, IDENTITY, identity)
    identity[PROMPTS] = digest_of(encoded.content())
    right = answered_right(model, encoded)
    if settings.keep == "right":
        kept = right.nonzero()[:, 0].tolist()
        if not kept:
            raise UserError(f"the model answers none of the {len(pairs)} pairs rightly")
        pairs, encoded = pairs.take(kept), encoded.take(kept)
    _claim(run, identity, pairs, model)
    facts = _facts(identity, pairs)
    result = _effects(model, encoded, settings, run, facts, engine or InProcess(model), progress)
    write_table(run / "units.csv", result.to_dataframe())
    write_json(run / "summary.json", summary_of(result, settings, int(right.sum()), len(right)))
    write_manifest(
        run,
        model,
        prompts="pairs.jsonl",
        settings=asdict(settings),
        seed=settings.seed,
        **noted_prompts(read_json(run / IDENTITY)),
        **budget_entry(run, IDENTITY, model),
    )
    write_patch_report(run)
    remove_shards(run / SHARDS)
    note_dtype_check(run, model, _on_a_few(encoded, settings), made=check_dtype)
    write_patch_report(run)  # it shows the comparison
    return result


def write_patch_report(run: Path) -> Path:
    """Write ``report.html`` from what a finished run holds, and return its path.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    result = PatchEffects.load(run / "effects.safetensors")
    page = render_patch(result, read_json(run / "summary.json"), read_manifest(run))
    write_atomically(run / "report.html", page)
    return run / "report.html"


def _claim(run: Path, identity: Mapping[str, Any], pairs: Pairs, model: HookedModel) -> None:
    """Make the directory this run's own, pairs included, unless it holds something else."""
    path = run / "pairs.jsonl"
    if path.is_file() and list(read_pairs(path)) != list(pairs):
        raise UserError(f"{run} was made with other pairs: choose another --out")
    check_run(run, IDENTITY, identity)
    written = with_budget(with_threads(identity), model)
    begin_run(run, IDENTITY, with_clock(written, model.tokenizer))
    if not path.is_file():
        write_jsonl(path, [pair.row() for pair in pairs])


def _facts(identity: Mapping[str, Any], pairs: Pairs) -> dict[str, str]:
    """What a file of effects says of the run that it belongs to."""
    rows = [pair.row() for pair in pairs]
    return {
        "model": identity["fingerprint"],
        "pairs": pairs.name,
        "run": digest_of({"identity": identity, "pairs": rows}),
    }


def _effects(
    model: HookedModel,
    encoded: EncodedPairs,
    settings: PatchSettings,
    run: Path,
    facts: Mapping[str, str],
    engine: Engine,
    progress: bool,
) -> PatchEffects:
    """The effects on all prompts: from their file, or put together from shards."""
    whole = run / "effects.safetensors"
    if whole.is_file():
        try:
            found = PatchEffects.load(whole)
            if found.metadata.get("run") != facts["run"]:
                raise UserError(f"{whole} holds the effects of another run")
            logger.info("effects: taken from %s", whole)
            return found
        except UserError as error:
            logger.warning("%s: the effects are made again", error)
    parts = cut(range(len(encoded)), settings.shard if settings.sliced else len(encoded))
    identity = {"run": facts["run"], "model": conditions(model)}
    store = ShardStore(run / SHARDS, identity, len(parts))
    budget = budget_of(run, IDENTITY, model)
    with using_threads(threads_of(run, IDENTITY)), using_budget(budget):
        shards = make_shards(
            store,
            engine,
            patch_shard,
            lambda number: PatchJob(encoded.take(parts[number]), settings),
            description="prompts",
            progress=progress,
        )
    results = [PatchEffects.from_parts(shard.tensors, shard.kept) for shard in shards]
    result = PatchEffects.concatenate(results)
    result = replace(result, metadata={**result.metadata, **facts})
    result.save(whole)
    return result


@dataclass(frozen=True)
class PatchJob:
    """What one shard needs, beside the model."""

    encoded: EncodedPairs
    settings: PatchSettings


def patch_shard(model: HookedModel, job: PatchJob) -> Shard:
    """The effects of all units on some prompts."""
    result = patch_pairs(model, job.encoded, progress=False, **_options(job.settings))
    tensors, kept = result.parts()
    return Shard(tensors, kept=kept)


def _options(settings: PatchSettings) -> dict[str, Any]:
    """The settings as `patch_pairs` takes them."""
    return {
        "component": settings.component,
        "method": settings.method,
        "positions": settings.positions,
        "metric": settings.metric,
        "source": settings.source,
        "steps": settings.steps,
        "top_k": settings.top_k,
        "seed": settings.seed,
        "budget": None if settings.memory is None else int(settings.memory * 2**20),
    }


def _on_a_few(encoded: EncodedPairs, settings: PatchSettings) -> Measure:
    """The metric and all effects on a few prompts, for another dtype."""
    few = encoded.take(range(min(N_PROMPTS, len(encoded))))

    def measure(model: HookedModel) -> tuple[Tensor, Tensor]:
        result = patch_pairs(model, few, progress=False, **_options(settings))
        return result.corrupted, result.values

    return measure


def summary_of(
    result: PatchEffects, settings: PatchSettings, n_right: int, n_pairs: int
) -> dict[str, Any]:
    """What the run found, in numbers: the two runs' metric with 95 % intervals, the first units."""
    table = result.to_dataframe()
    tested = len(set(result.groups)) >= MINIMUM_GROUPS
    assert result.clean is not None
    runs = {"clean": result.clean, "corrupted": result.corrupted}
    means = {
        name: list(mean_interval(values.numpy(), result.groups, seed=settings.seed))
        for name, values in runs.items()
    }
    top = table.head(SHOWN).astype(object).where(table.head(SHOWN).notna(), None)
    return {
        "n_pairs": n_pairs,
        "n_right": n_right,
        "n_prompts": len(result),
        "n_groups": len(set(result.groups)),
        "component": result.component,
        "method": result.method,
        "metric": result.metric,
        "source": result.source,
        "positions": settings.positions,
        "mean_metric": means,
        "screening": dict(result.metadata) if result.method == "screen" else None,
        "n_units": len(table),
        "n_significant": int((table["q_value"] <= FDR).sum()) if tested else None,
        "fdr": FDR,
        "top": top.to_dict("records"),
    }
