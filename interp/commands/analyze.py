"""``interp moelora analyze`` as a function: from an adapter to a run directory about its experts.

The directory holds ``routing.safetensors`` (counts), ``routing.csv`` (each expert's share of each
task), ``specialization.csv`` (measures, intervals, nulls), ``similarity.csv`` (experts' outputs),
``effects.safetensors``, ``effects_accuracy.safetensors`` and ``effects.csv`` (what switching an
expert off does), ``agreement.csv`` (routing beside effects), ``measures.json``, ``manifest.json``,
``analyze.json`` (the run's identity), ``report.html``, and optionally ``tokens.parquet``. Repeating
an interrupted call continues it.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from interp.arguments import check_choice
from interp.commands.adapted import AdaptedModel, fingerprint_of, load_adapted
from interp.commands.expert_passes import count_routing, switch_experts_off
from interp.errors import UserError
from interp.experts.effects.agreement import RoutingAgreement, routing_agreement
from interp.experts.effects.effects import ExpertEffects
from interp.experts.routing.collect import ROUTERS
from interp.experts.routing.corpus import LabelledCorpus, check_enough, corpus_of
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputSimilarity
from interp.experts.routing.specialization import (
    DRAWS,
    FDR,
    TOKEN_DRAWS,
    Specialization,
    measure_specialization,
)
from interp.files.documents import read_json, write_atomically, write_json, write_table
from interp.lazy import stats
from interp.models.device_map import DeviceMap, MaxMemory, describe
from interp.models.versions import require_bridge
from interp.moelora.data.examples import Example
from interp.moelora.data.formats import ColumnMapping
from interp.moelora.data.sources import draw, load_split
from interp.moelora.load import read_adapter_config
from interp.report.experts_page import (
    Analysis,
    EffectsPart,
    agreement_rows,
    agreement_sentences,
    render_analysis,
)
from interp.report.page import PlacedFigure
from interp.runs.clock import one_moment, with_clock
from interp.runs.engines import EngineName, check_engine, engine_for, placed_as_here
from interp.runs.identity import begin_run, check_run
from interp.runs.lock import one_process
from interp.runs.manifest import describe_hf_model, read_manifest, write_manifest
from interp.runs.prompting import PROMPTS, asking_identity
from interp.runs.resources import run_resources, with_resources
from interp.runs.shards import Engine, digest_of

logger = logging.getLogger(__name__)

Part = Literal["train", "test", "both"]
IDENTITY = "analyze.json"
LEAST_UNITS = 8


@dataclass(frozen=True)
class AnalyzeSettings:
    """Settings that determine the result of an analysis; part of the run's identity.

    Raises `UserError` for a value out of range.
    """

    model: str | None = None
    """The base model; by default the one that the adapter names."""
    data: tuple[str, ...] = ("arithmetic", "facts", "false_premise")
    """Sets that ship (arithmetic, facts, false_premise), files, directories, or hub data sets."""
    columns: str = ""
    """Which columns hold what, where that is not seen: prompt=Question,answer=Answer."""
    part: Part = "test"
    """test: questions set apart from training; train; or both."""
    limit: int | None = None
    """At most so many questions of each task."""
    least_tokens: int = 500
    """Tokens that every task must have."""
    draws: int = DRAWS
    """Draws of the null over whole texts."""
    token_draws: int = TOKEN_DRAWS
    """Draws of the null within token ids; 0 leaves it out."""
    routers: int = ROUTERS
    """Untrained routers that are compared with."""
    effects: int = 16
    """On how many questions of each task experts are switched off; 0 leaves that out."""
    effects_budget: int = 60
    """How many experts are switched off one by one: those with the largest estimated effect."""
    tokens: bool = False
    """Also write every token's experts and gates to tokens.parquet."""
    fdr: float = FDR
    """The false-discovery rate up to which something counts as significant."""
    dtype: str = "float32"
    """float32 or bfloat16."""
    quantization: str | None = None
    """bnb-4bit or bnb-8bit: the base's weights are quantized while they are read."""
    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        check_choice("part", self.part, Part)
        if not self.data:
            raise UserError("data is empty: name at least one source")
        for name, least in (
            *(("limit", 1), ("least_tokens", 1), ("draws", 19), ("token_draws", 0)),
            *(("routers", 0), ("effects", 0), ("effects_budget", 1)),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}: it must be at least {least}")
        if not 0 < self.fdr < 1:
            raise UserError(f"fdr is {self.fdr}: it must be between 0 and 1")


@one_process
@one_moment(IDENTITY)
def analyze_adapter(
    adapter: Path,
    settings: AnalyzeSettings,
    run: Path,
    *,
    device: str | None = None,
    progress: bool = True,
    engine: EngineName = "local",
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: int | None = None,
    allow_pickle: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    around: Callable[[Engine], Engine] = lambda engine: engine,
) -> dict[str, Any]:
    """Analyze the adapter in a directory (or in a training run) and write the results to ``run``.

    Args:
        engine, address, workers, gpus_per_worker: where routing is counted and experts are
            switched off; see `interp.runs.engines`.
        allow_pickle: accept a base model whose weights are pickle files.
        device_map, max_memory: of the base model, as `interp.load_model` takes them.
        around: makes the engine that is used out of the one that was opened.

    Returns:
        The content of measures.json.

    Raises:
        UserError: no adapter, one of another kind or of another base model; data of one task only;
            a task with too few tokens; TransformerLens 3, unless ``settings.effects`` is 0.
    """
    check_engine(engine, gpus_per_worker)
    if settings.tokens and engine != "local":
        raise UserError("--tokens needs the local engine: leave --tokens or --engine out")
    if settings.effects:
        require_bridge("measuring the effects of experts (--effects 0 leaves them out)")
    folder = adapter / "adapter" if (adapter / "adapter").is_dir() else adapter
    model_name = settings.model or recorded_base(folder)
    examples = read_tasks(settings)
    load = partial(
        load_adapted,
        model_name,
        folder.resolve(),
        **{"dtype": settings.dtype, "quantization": settings.quantization},
        **{"device": device, "allow_pickle": allow_pickle},
        **{"device_map": device_map, "max_memory": max_memory},
    )
    loaded = load()
    corpus = corpus_of(examples, loaded.tokenizer)
    check_enough(corpus, tokens=settings.least_tokens, units=LEAST_UNITS)
    identity = _identity(loaded, corpus, {**asdict(settings), "model": model_name})
    check_run(run, IDENTITY, identity)
    begin_run(run, IDENTITY, with_clock(with_resources(identity), loaded.tokenizer))
    workplace: Any = {"device": device or "cpu", "device_map": describe(loaded.model)}
    load = placed_as_here(load, *workplace.values())
    workplace |= {"address": address, "workers": workers, "gpus_per_worker": gpus_per_worker}
    effects = None
    with (
        run_resources(run, IDENTITY),
        engine_for(engine, loaded, load, identify=fingerprint_of, **workplace) as opened,
    ):
        options: Any = {"identity": read_json(run / IDENTITY), "engine": around(opened)}
        options |= {"seed": settings.seed, "progress": progress}
        records, similarity = count_routing(
            run, loaded, corpus, routers=settings.routers, tokens=settings.tokens, **options
        )
        if settings.effects:
            tasks = _drawn(examples, settings.effects)
            effects = switch_experts_off(
                run, loaded, tasks, budget=settings.effects_budget, **options
            )
    return _conclude(
        run,
        loaded,
        corpus,
        settings=settings,
        records=records,
        similarity=similarity,
        effects=effects,
    )


def _identity(
    loaded: AdaptedModel, corpus: LabelledCorpus, settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything that determines the result of an analysis."""
    return {
        **json.loads(json.dumps(settings)),
        "fingerprint": loaded.base_fingerprint,
        "adapter_sha256": loaded.adapter_sha256,
        "adapter_config": loaded.adapter_config,
        **asking_identity(loaded.model.get_base_model(), loaded.tokenizer),
        PROMPTS: digest_of(asdict(corpus)),
    }


def _conclude(
    run: Path,
    loaded: AdaptedModel,
    corpus: LabelledCorpus,
    *,
    settings: AnalyzeSettings,
    records: RoutingRecords,
    similarity: OutputSimilarity,
    effects: ExpertEffects | None,
) -> dict[str, Any]:
    """Write measures, tables and the page from the results of the slow passes."""
    found = measure_specialization(
        records, draws=settings.draws, token_draws=settings.token_draws, seed=settings.seed
    )
    found.save(run)
    agreement = None
    if effects is not None:
        agreement = routing_agreement(effects, found.experts, fdr=settings.fdr)
        write_table(run / "agreement.csv", agreement.to_dataframe())
    content = {
        **measures_of(corpus, records, found, similarity=similarity, fdr=settings.fdr),
        "effects": _effect_measures(effects, agreement, fdr=settings.fdr) if agreement else None,
    }
    described = describe_hf_model(
        loaded.model.get_base_model(),
        loaded.tokenizer,
        spec=loaded.spec,
        fingerprint=loaded.base_fingerprint,
    )
    noted = {"adapter_sha256": loaded.adapter_sha256, "settings": asdict(settings)}
    write_manifest(run, described, prompts=None, identity=IDENTITY, seed=settings.seed, **noted)
    analysis = Analysis(
        title=loaded.spec,
        records=records,
        specialization=found,
        similarity=similarity,
        content=content,
        effects=_effects_part(effects, agreement),
        manifest=read_manifest(run),
    )
    write_atomically(run / "report.html", render_analysis(analysis))
    write_json(run / "measures.json", content)
    return content


def recorded_base(folder: Path) -> str:
    """The base model that a saved adapter names. Raises UserError if it names none."""
    name = read_adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"the adapter in {folder} does not name its base model: give --model")
    return name


def read_tasks(settings: AnalyzeSettings) -> list[Example]:
    """The examples of all sources, at most ``limit`` of each task."""
    columns = ColumnMapping.parse(settings.columns) if settings.columns else None
    examples: list[Example] = []
    for source in settings.data:
        split = load_split(source, columns=columns)
        parts = {"train": split.train, "test": split.test, "both": (*split.train, *split.test)}
        examples += parts[settings.part]
    return [example for drawn in _drawn(examples, settings.limit).values() for example in drawn]


def measures_of(
    corpus: LabelledCorpus,
    records: RoutingRecords,
    found: Specialization,
    *,
    similarity: OutputSimilarity,
    fdr: float,
) -> dict[str, Any]:
    """The measures of routing in measures.json: means over projections, and significant counts."""
    summary = found.summary(fdr=fdr).astype(object)
    summary = summary.where(summary.notna(), None)
    measures: dict[str, Any] = {}
    for row in summary.to_dict("records"):
        measures.setdefault(row.pop("measure"), {})[row.pop("null")] = row
    tokens = corpus.tokens
    alike = similarity.table[["cosine", "cka", "cka_chance"]].mean().astype(object)
    return {
        "tokens": records.n_tokens,
        "tasks": {
            task: {"tokens": tokens[task], "units": corpus.units[task]} for task in corpus.tasks
        },
        "task_entropy": float(stats.entropy(list(tokens.values()))),
        "projections": len(records.projections),
        "fdr": fdr,
        "measures": measures,
        "experts": {
            "experts": sum(projection.n_experts for projection in records.projections),
            "tested": len(found.experts),
            "significant": int((found.experts["q_value"] <= fdr).sum()),
        },
        "dead_experts": int(records.by_projection()["dead"].sum()),
        "similarity": {"n": similarity.n, **alike.where(alike.notna(), None).to_dict()},
    }


def _effect_measures(effects: Any, agreement: RoutingAgreement, *, fdr: float) -> Any:
    """The measures of effects in measures.json, and of their agreement with routing."""
    table = effects.to_dataframe()
    names = ("n", "share", "chance", "p_value", "spearman", "spearman_p")
    numbers = {name: getattr(agreement, name) for name in names}
    return {
        "examples": len(effects.loss),
        "tested": len(table),
        "significant": int((table["q_value"] <= fdr).sum()),
        "agreement": {key: None if math.isnan(value) else value for key, value in numbers.items()},
    }


def _drawn(examples: Sequence[Example], n: int | None) -> dict[str, list[Example]]:
    """At most ``n`` examples of each task."""
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    return {task: draw(of_task, n) for task, of_task in by_task.items()}


def _effects_part(effects: ExpertEffects | None, agreement: RoutingAgreement | None) -> EffectsPart:
    if effects is None or agreement is None:
        return EffectsPart()
    placed = PlacedFigure.place("effects", effects.plot(), "The experts with the largest effects.")
    return EffectsPart(agreement_sentences(agreement), (placed,), agreement_rows(agreement))
