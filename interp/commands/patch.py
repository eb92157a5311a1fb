"""``interp patch`` as a function: from pairs of texts to a run directory with every unit's effect.

The run holds the pairs, the effects on each prompt, a table of units, a summary and a report.
Effects are computed and saved one shard of prompts at a time, so that repeating an interrupted call
continues it; another model, other pairs or other settings in the same directory are an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from interp.arguments import check_choice
from interp.commands.dtype_check import N_PROMPTS, Measure, note_dtype_check
from interp.commands.pairs import (
    PairSettings,
    answered_pairs,
    claim_pairs,
    encoded_pairs,
    kept_result,
    mean_metrics,
)
from interp.errors import UserError
from interp.files.documents import read_json, write_atomically, write_json, write_table
from interp.forward.hook_points import Component, check_component
from interp.jobs import RUN_HERE, JobRunner, Shard
from interp.models.hooked_model import HookedModel
from interp.patching import PatchEffects
from interp.patching.noise import DRAWS
from interp.patching.unit_effects import Method, check_method
from interp.report.patch_page import render_patch
from interp.runs.clock import one_moment
from interp.runs.identity import check_run, conditions, model_identity
from interp.runs.job_runner import StoredJobRunner
from interp.runs.lock import one_process
from interp.runs.manifest import read_manifest, write_manifest
from interp.runs.prompting import PROMPTS
from interp.runs.resources import budget_entry, run_resources
from interp.runs.shards import Engine, InProcess, digest_of, remove_shards
from interp.statistics.significance import MINIMUM_GROUPS
from interp.tasks import EncodedPairs
from interp.tasks.patching import Source, Where, check_source, patch_pairs, positions_of

IDENTITY = "patch.json"
SHARDS = Path("shards") / "patch"
SHOWN = 10
FDR = 0.05
PATCH_OPTIONS = (
    *("component", "method", "positions", "metric", "source"),
    *("steps", "draws", "top_k", "seed"),
)
"""Settings that `patch_pairs` takes under the same name."""


@dataclass(frozen=True)
class PatchSettings(PairSettings):
    """Settings that determine the result of ``interp patch``; part of the run's identity."""

    component: Component = "z"
    """What is patched; z is a head's output, k and v are patched by key/value group."""
    method: Method = "exact"
    """exact: one run a unit; attribution, ig, atp*: by gradient; screen: the gradient ranks all
    units, exact patching verifies the first."""
    positions: Where = "all"
    """All positions at once, each alone, or each of the pairs' named spans."""
    source: Source = "run"
    """Where patched values come from: the clean run, nothing, a mean, another prompt's run. noise:
    noise on the embeddings of the clean texts' span subject, or their first, and clean states of
    resid_post, mlp_out or attn_out put back, at each position or by the tokens' roles."""
    steps: int = 8
    """Steps of ig."""
    draws: int = DRAWS
    """Draws of noise."""
    top_k: int = 20
    """How many units screen verifies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("positions", self.positions, get_args(Where))
        check_component(self.component)
        check_method(self.method)
        check_source(self.source, self.component, self.method)
        for name in ("steps", "draws", "top_k"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")

    @property
    def sliced(self) -> bool:
        """Whether prompts can be patched independently, in shards.

        They cannot where values or the size of noise come from other prompts, where units are
        ranked over all prompts, or where positions depend on the padding of the whole batch.
        """
        independent = self.source in ("run", "zero") and self.method != "screen"
        return independent and self.positions != "each"


@one_process
@one_moment(IDENTITY)
def patch_run(
    model: HookedModel,
    settings: PatchSettings,
    run: Path,
    *,
    engine: Engine | None = None,
    runner: JobRunner = RUN_HERE,
    check_dtype: bool = True,
    progress: bool = True,
) -> PatchEffects:
    """Patch every unit of a component on pairs, and write the results to ``run``.

    Args:
        engine: where the shards are computed; by default in this process.
        runner: has the pairs answered, which is not kept in shards.
        check_dtype: compare a run in another dtype with float32 at the end.

    Raises:
        UserError: pairs that do not fit the settings, another run in the directory, or no pair that
            the model answers rightly although only such pairs are kept.
    """
    pairs, encoded = encoded_pairs(model, settings)
    check_component(settings.component, model)
    if settings.source != "noise":  # which runs the clean texts alone
        positions_of(encoded, settings.positions)
    identity = {**asdict(settings), **model_identity(model)}
    check_run(run, IDENTITY, identity)
    identity[PROMPTS] = digest_of(encoded.content())
    pairs, encoded, right = answered_pairs(model, settings, pairs, encoded=encoded, runner=runner)
    claim_pairs(run, IDENTITY, identity, pairs=pairs, model=model)
    rows = [pair.row() for pair in pairs]
    metadata = {
        "model": identity["fingerprint"],
        "pairs": pairs.name,
        "run": digest_of({"identity": identity, "pairs": rows}),
    }
    result = _effects(
        model,
        encoded,
        settings,
        run=run,
        metadata=metadata,
        engine=engine or InProcess(model),
        progress=progress,
    )
    write_table(run / "units.csv", result.to_dataframe())
    summary = summary_of(result, settings, n_right=int(right.sum()), n_pairs=len(right))
    write_json(run / "summary.json", summary)
    noted = {"settings": asdict(settings), "seed": settings.seed}
    noted |= budget_entry(run, IDENTITY, model)
    write_manifest(run, model, prompts="pairs.jsonl", identity=IDENTITY, **noted)
    write_patch_report(run)
    remove_shards(run / SHARDS)
    if note_dtype_check(run, model, _on_a_few(encoded, settings), made=check_dtype):
        write_patch_report(run)
    return result


def write_patch_report(run: Path) -> Path:
    """Write ``report.html`` of a finished run and return its path.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    result = PatchEffects.load(run / "effects.safetensors")
    page = render_patch(result, read_json(run / "summary.json"), read_manifest(run))
    return write_atomically(run / "report.html", page)


def _effects(
    model: HookedModel,
    encoded: EncodedPairs,
    settings: PatchSettings,
    *,
    run: Path,
    metadata: Mapping[str, str],
    engine: Engine,
    progress: bool,
) -> PatchEffects:
    """The effects on all prompts: from their file, or from shards."""
    whole = run / "effects.safetensors"
    if (kept := kept_result(whole, PatchEffects, digest=metadata["run"])) is not None:
        return kept
    runner = StoredJobRunner(run / SHARDS, engine, conditions(model))
    job = PatchJob(encoded, settings, metadata["run"])
    with run_resources(run, IDENTITY, model):
        shards = runner.shards(patch_shard, job, description="prompts", progress=progress)
        results = [PatchEffects.from_parts(shard.tensors, shard.kept) for shard in shards]
    result = PatchEffects.concatenate(results)
    result = replace(result, metadata={**result.metadata, **metadata})
    result.save(whole)
    return result


@dataclass(frozen=True)
class PatchJob:
    """Pairs in which the effects of all units are measured.

    Attributes:
        run: digest of the run that the effects belong to.
    """

    encoded: EncodedPairs
    settings: PatchSettings
    run: str = ""

    @property
    def prompts_per_shard(self) -> int:
        """As the settings say, or all where the pairs cannot be taken apart."""
        return self.settings.shard if self.settings.sliced else len(self.encoded)

    def order(self) -> Sequence[int]:
        """The pairs as they are given."""
        return range(len(self.encoded))

    def take(self, prompts: Sequence[int]) -> "PatchJob":
        """The same job for some of the pairs."""
        return replace(self, encoded=self.encoded.take(prompts))

    def identity(self) -> dict[str, Any]:
        """What decides the effects."""
        return {"run": self.run}


def patch_shard(model: HookedModel, job: PatchJob, *, progress: bool = False) -> Shard:
    """The effects of all units on the pairs of a job."""
    result = patch_pairs(model, job.encoded, progress=progress, **_options(job.settings))
    tensors, kept = result.parts()
    return Shard(tensors, kept=kept)


def _options(settings: PatchSettings) -> dict[str, Any]:
    """The settings as `patch_pairs` takes them, without those of other sources."""
    unused = ("steps", "top_k") if settings.source == "noise" else ("draws",)
    used = {name: getattr(settings, name) for name in PATCH_OPTIONS if name not in unused}
    return {"budget": settings.budget, **used}


def _on_a_few(encoded: EncodedPairs, settings: PatchSettings) -> Measure:
    """A function for the dtype check: the metric and all effects on a few prompts."""
    few = encoded.take(range(min(N_PROMPTS, len(encoded))))

    def measure(model: HookedModel) -> tuple[Tensor, Tensor]:
        result = patch_pairs(model, few, progress=False, **_options(settings))
        return result.corrupted, result.values

    return measure


def summary_of(
    result: PatchEffects, settings: PatchSettings, *, n_right: int, n_pairs: int
) -> dict[str, Any]:
    """The content of summary.json: both runs' metric with 95 % intervals, and the first units."""
    table = result.to_dataframe()
    tested = len(set(result.groups)) >= MINIMUM_GROUPS
    assert result.clean is not None
    means = mean_metrics(result.clean, result.corrupted, result.groups, seed=settings.seed)
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
