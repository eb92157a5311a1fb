"""``interp circuit`` as a function: from pairs of texts to edges, a circuit, and its faithfulness.

Groups of pairs are parted: edges are scored on the one part, and circuits of the first edges run on
the other, beside random circuits of the same size. The run holds the pairs, all scores, a table of
the largest edges, the circuit as EAP-IG and MIB read it, the curve, a summary and a report. Both
steps are saved one shard of prompts at a time, so that repeating an interrupted call continues it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
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
from interp.jobs import RUN_HERE, JobRunner, OutputSpec, Shard
from interp.models.hooked_model import HookedModel
from interp.patching import EdgeEffects, patch_edges, stability
from interp.patching.edges.edge_faithfulness import EdgeCircuits, run_circuits
from interp.patching.edges.patch_edges import EdgeMethod
from interp.patching.edges.selection import Select
from interp.patching.effect_arrays import By
from interp.patching.faithfulness import Faithfulness
from interp.report.circuit_page import render_circuit
from interp.runs.clock import one_moment
from interp.runs.identity import check_run, conditions, model_identity
from interp.runs.job_runner import StoredJobRunner
from interp.runs.lock import one_process
from interp.runs.manifest import read_manifest, write_manifest
from interp.runs.prompting import PROMPTS
from interp.runs.resources import budget_entry, run_resources
from interp.runs.shards import Engine, InProcess, digest_of, remove_shards
from interp.tasks import EncodedPairs
from interp.tasks.patching import metric_of, positions_of

logger = logging.getLogger(__name__)

IDENTITY = "circuit_run.json"
SHARDS = Path("shards") / "circuit"
EdgePositions = Literal["all", "spans"]
TABLE = 1000
"""Edges in edges.csv."""
RESAMPLES = 200
"""Resamples of the pairs, for the stability of the first edges."""


@dataclass(frozen=True)
class CircuitSettings(PairSettings):
    """Settings that determine the result of ``interp circuit``; part of the run's identity."""

    method: EdgeMethod = "eap-ig"
    """eap, clean-corrupted, eap-ig, eap-ig-activations: by gradient; exact: one run for each edge,
    which takes hours but on small models."""
    steps: int = 5
    """Steps of eap-ig and eap-ig-activations."""
    by: By = "absolute"
    """The order of the edges: by absolute score, for what matters (MIB's CMD), or by signed score,
    for what helps (CPR)."""
    select: Select = "top"
    """top: the first edges of that order; greedy: the first that lead to the logits through edges
    that were chosen before."""
    edges: int = 200
    """Edges of the circuit that is written; those that lead nowhere are left out."""
    positions: EdgePositions = "all"
    """Where writers change: at all positions, or at the pairs' named spans, by which texts of
    unequal lengths are aligned; of such texts edges are scored, and no circuits run."""
    held_out: float = 0.5
    """The share of the groups of pairs on which circuits are run, and not searched; 0 for no
    curve."""
    n_random: int = 3
    """Random circuits beside each circuit of the curve."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, get_args(EdgeMethod))
        check_choice("by", self.by, get_args(By))
        check_choice("select", self.select, get_args(Select))
        check_choice("positions", self.positions, get_args(EdgePositions))
        for name, least in (("steps", 1), ("edges", 1), ("n_random", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held_out is {self.held_out}: it must be at least 0, and below 1")


@one_process
@one_moment(IDENTITY)
def circuit_run(
    model: HookedModel,
    settings: CircuitSettings,
    run: Path,
    *,
    engine: Engine | None = None,
    runner: JobRunner = RUN_HERE,
    check_dtype: bool = True,
    progress: bool = True,
) -> EdgeEffects:
    """Score edges on some groups of pairs, run circuits on the others, and write a run directory.

    Args:
        engine: where the shards are computed; by default in this process.
        runner: has the pairs answered, which is not kept in shards.
        check_dtype: compare a run in another dtype with float32 at the end.

    Raises:
        UserError: pairs that do not fit the settings or their lengths, another run in the
            directory, or no pair that the model answers rightly although only such are kept.
    """
    pairs, encoded = encoded_pairs(model, settings)
    positions_of(encoded, settings.positions)
    if settings.held_out and not encoded.aligned:
        raise UserError(
            "circuits of edges run on clean and corrupted texts of as many tokens each: choose "
            "held_out 0 to score edges alone"
        )
    identity = {**asdict(settings), **model_identity(model)}
    check_run(run, IDENTITY, identity)
    identity[PROMPTS] = digest_of(encoded.content())
    pairs, encoded, right = answered_pairs(model, settings, pairs, encoded=encoded, runner=runner)
    search, held_out = parted(encoded.groups, settings.held_out, settings.seed)
    claim_pairs(run, IDENTITY, identity, pairs=pairs, model=model)
    digest = digest_of({"identity": identity, "pairs": [pair.row() for pair in pairs]})
    metadata = {"model": identity["fingerprint"], "pairs": pairs.name, "run": digest}
    shards = StoredJobRunner(run / SHARDS, engine or InProcess(model), conditions(model))
    with run_resources(run, IDENTITY, model):
        job = EdgeJob(encoded.take(search), settings, digest)
        found = _scored(run, shards, job, metadata=metadata, progress=progress)
        curve = None
        if held_out:
            rest = replace(job, encoded=encoded.take(held_out), scores=found)
            curve = _curve(model, shards, rest, progress=progress)
    write_results(
        run, found, curve, settings=settings, n_right=int(right.sum()), n_pairs=len(right)
    )
    noted = {"settings": asdict(settings), "seed": settings.seed}
    noted |= budget_entry(run, IDENTITY, model)
    write_manifest(run, model, prompts="pairs.jsonl", identity=IDENTITY, **noted)
    write_circuit_report(run)
    remove_shards(run / SHARDS)
    if note_dtype_check(run, model, _on_a_few(encoded, settings), made=check_dtype):
        write_circuit_report(run)
    return found


def parted(groups: Sequence[str], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """The prompts of the groups that are searched, and of those that are held out.

    At least one group is searched; a share above zero holds out at least one where there are two.
    """
    names = list(dict.fromkeys(groups))
    count = min(round(held_out * len(names)) or int(held_out > 0), len(names) - 1)
    order = np.random.default_rng(seed).permutation(len(names))
    away = {names[index] for index in order[:count]}
    search = [index for index, name in enumerate(groups) if name not in away]
    return search, [index for index, name in enumerate(groups) if name in away]


def write_circuit_report(run: Path) -> Path:
    """Write ``report.html`` of a finished run and return its path.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    found = EdgeEffects.load(run / "edges.safetensors")
    page = render_circuit(found, read_json(run / "summary.json"), read_manifest(run))
    return write_atomically(run / "report.html", page)


@dataclass(frozen=True)
class EdgeJob:
    """Pairs on which edges are scored, or circuits are run.

    Attributes:
        run: digest of the run that the values belong to.
        scores: of the circuits that run; None to score edges.
    """

    encoded: EncodedPairs
    settings: CircuitSettings
    run: str = ""
    scores: EdgeEffects | None = None

    @property
    def prompts_per_shard(self) -> int:
        """As the settings say."""
        return self.settings.shard

    def order(self) -> Sequence[int]:
        """The pairs as they are given."""
        return range(len(self.encoded))

    def take(self, prompts: Sequence[int]) -> "EdgeJob":
        """The same job for some of the pairs."""
        return replace(self, encoded=self.encoded.take(prompts))

    def identity(self) -> dict[str, Any]:
        """What decides the values."""
        return {"run": self.run, "circuits": self.scores is not None}

    @property
    def circuits(self) -> EdgeCircuits:
        """The circuits of the scored edges."""
        assert self.scores is not None
        settings = self.settings
        order: dict[str, Any] = {"by": settings.by, "select": settings.select}
        return EdgeCircuits.of(self.scores, **order, n_random=settings.n_random, seed=settings.seed)

    @property
    def given(self) -> tuple[Any, Any]:
        """The clean and the corrupted prompts."""
        return self.encoded.clean, self.encoded.corrupted


def edge_shard(model: HookedModel, job: EdgeJob, *, progress: bool = False) -> Shard:
    """The scores of all edges on the pairs of a job."""
    tensors, kept = _scores(model, job.encoded, job.settings, progress=progress).parts()
    return Shard(tensors, kept=kept)


def _scores(
    model: HookedModel, encoded: EncodedPairs, settings: CircuitSettings, *, progress: bool
) -> EdgeEffects:
    """The scores of all edges on some pairs."""
    options: dict[str, Any] = {"method": settings.method, "steps": settings.steps}
    options |= {"groups": encoded.groups, "seed": settings.seed, "budget": settings.budget}
    options["positions"] = positions_of(encoded, settings.positions)
    metric = metric_of(model, encoded, settings.metric)
    return patch_edges(
        model, encoded.clean, encoded.corrupted, metric, progress=progress, **options
    )


def _on_a_few(encoded: EncodedPairs, settings: CircuitSettings) -> Measure:
    """A function for the dtype check: the metric and all scores on a few prompts."""
    few = encoded.take(range(min(N_PROMPTS, len(encoded))))

    def measure(model: HookedModel) -> tuple[Tensor, Tensor]:
        found = _scores(model, few, settings, progress=False)
        return found.corrupted, found.values

    return measure


CIRCUITS = OutputSpec({"circuit": 2, "clean": 1, "corrupted": 1})


def circuit_shard(model: HookedModel, job: EdgeJob, *, progress: bool = False) -> Shard:
    """The metric of each circuit on the pairs of a job, and of the unpatched runs."""
    settings, metric = job.settings, metric_of(model, job.encoded, job.settings.metric)
    options: dict[str, Any] = {"budget": settings.budget, "progress": progress}
    values, runs = run_circuits(model, *job.given, metric, circuits=job.circuits, **options)
    return Shard({"circuit": values, **runs})


def _scored(
    run: Path,
    runner: StoredJobRunner,
    job: EdgeJob,
    *,
    metadata: Mapping[str, str],
    progress: bool,
) -> EdgeEffects:
    """The scores of all edges: from their file, or from shards."""
    whole = run / "edges.safetensors"
    if (kept := kept_result(whole, EdgeEffects, digest=metadata["run"])) is not None:
        return kept
    shards = runner.shards(edge_shard, job, description="edges", progress=progress)
    found = EdgeEffects.concatenate(
        [EdgeEffects.from_parts(shard.tensors, shard.kept) for shard in shards]
    )
    found = replace(found, metadata=metadata)
    found.save(whole)
    return found


def _curve(
    model: HookedModel, runner: StoredJobRunner, job: EdgeJob, *, progress: bool
) -> Faithfulness:
    """The faithfulness of the first edges on pairs that were not searched."""
    options: dict[str, Any] = {"output": CIRCUITS, "progress": progress}
    shard = runner.run(circuit_shard, model, job, description="circuits", **options)
    tensors = {name: torch.as_tensor(value) for name, value in shard.tensors.items()}
    return job.circuits.curve(
        tensors["circuit"],
        clean=tensors["clean"],
        corrupted=tensors["corrupted"],
        groups=job.encoded.groups,
    )


def write_results(
    run: Path,
    found: EdgeEffects,
    curve: Faithfulness | None,
    *,
    settings: CircuitSettings,
    n_right: int,
    n_pairs: int,
) -> None:
    """The tables, the circuit and the summary of a run."""
    write_table(run / "edges.csv", found.to_dataframe(TABLE, by=settings.by))
    n_edges = len(found.order())
    summary: dict[str, Any] = {
        "n_pairs": n_pairs,
        "n_right": n_right,
        "n_search": len(found),
        "n_edges": n_edges,
        "method": found.method,
        "metric": found.metric,
        "by": settings.by,
        "select": settings.select,
        "mean_metric": mean_metrics(found.clean, found.corrupted, found.groups, seed=settings.seed),
        "circuit": None,
        "stability": _stability_of(found, settings),
        "held_out": None,
    }
    try:
        circuit = found.circuit(
            min(settings.edges, n_edges), by=settings.by, select=settings.select
        )
        circuit.save(run / "circuit.json")
        kept = sum(edge["in_graph"] for edge in (circuit.edges or {}).values())
        summary["circuit"] = {"n_asked": settings.edges, "n_kept": kept}
    except UserError as error:
        logger.warning("no circuit.json: %s", error)
    if curve is not None:
        table = curve.to_dataframe()
        write_table(run / "faithfulness.csv", table)
        summary["held_out"] = {
            "n_prompts": len(curve.clean),
            "curve": table.astype(object).where(table.notna(), None).to_dict("records"),
            "random_curves": curve.random_curves.tolist(),
            "cpr": list(curve.cpr),
            "cmd": list(curve.cmd),
            "random_cpr": curve.random_cpr.tolist(),
            "random_cmd": curve.random_cmd.tolist(),
        }
    write_json(run / "summary.json", summary)


def _stability_of(found: EdgeEffects, settings: CircuitSettings) -> dict[str, Any] | None:
    """How far the first edges are the same in resamples of the pairs; None with one group."""
    if len(set(found.groups)) < 2:
        return None
    k = min(settings.edges, len(found.order()))
    drawn = stability(found, k, by=settings.by, n_resamples=RESAMPLES)
    return {"k": k, "overlap": list(drawn.overlap), "chance": drawn.chance}
