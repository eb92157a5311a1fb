"""``interp moelora analyze`` as a function: from an adapter to a run directory about its experts.

The directory holds ``routing.safetensors`` (counts), ``routing.csv`` (each expert's share of each
task), ``specialization.csv`` (measures, intervals, nulls), ``similarity.csv`` (experts' outputs),
``effects.safetensors``, ``effects_accuracy.safetensors`` and ``effects.csv`` (what switching an
expert off does), ``agreement.csv`` (routing beside effects), ``measures.json``, ``manifest.json``,
``analyze.json`` (what decides the outcome), ``report.html``, and ``tokens.parquet`` if it was asked
for. The same call again takes up what is there.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from scipy.stats import entropy

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
from interp.models.versions import require_bridge
from interp.moelora.data.examples import Example
from interp.moelora.data.formats import ColumnMapping
from interp.moelora.data.sources import load_split
from interp.moelora.data.taskdata import draw
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
from interp.runs.engines import EngineName, engine_for
from interp.runs.identity import begin_run, check_run
from interp.runs.lock import one_process
from interp.runs.manifest import describe_hf_model, read_manifest, write_manifest
from interp.runs.prompting import PROMPTS, asking_identity, noted_prompts
from interp.runs.shards import digest_of
from interp.runs.threads import threads_of, using_threads, with_threads

logger = logging.getLogger(__name__)

Part = Literal["train", "test", "both"]
IDENTITY = "analyze.json"
LEAST_UNITS = 8


@dataclass(frozen=True)
class AnalyzeSettings:
    """What decides the outcome of an analysis; part of the run's identity.

    The texts below the fields are the command line's help too. Raises `UserError` for a value out
    of range.
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
    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise UserError(f"unknown part {self.part!r}; known: {', '.join(get_args(Part))}")
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
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Analyze the adapter in a directory (or in a training run) and leave it all in ``run``.

    ``engine``, ``address`` and ``workers`` say where routing is counted and experts are switched
    off; see `interp.runs.engines`. ``allow_pickle`` lets the base model's weights be pickle files.
    Returns what measures.json holds. Raises UserError for an adapter that is none, of another kind
    or for another base model, for data of one task only, for a task with too few tokens, and on
    TransformerLens 3 unless ``settings.effects`` is 0.
    """
    folder = adapter / "adapter" if (adapter / "adapter").is_dir() else adapter
    model_name = settings.model or recorded_base(folder)
    examples = read_tasks(settings)
    load = partial(
        load_adapted,
        model_name,
        folder.resolve(),
        dtype=settings.dtype,
        device=device,
        allow_pickle=allow_pickle,
    )
    loaded = load()
    corpus = corpus_of(examples, loaded.tokenizer)
    check_enough(corpus, tokens=settings.least_tokens, units=LEAST_UNITS)
    identity = {
        **json.loads(json.dumps(asdict(settings))),
        "model": model_name,
        "fingerprint": loaded.base_fingerprint,
        "adapter_sha256": loaded.adapter_sha256,
        "adapter_config": loaded.adapter_config,
        **asking_identity(loaded.model.get_base_model(), loaded.tokenizer),
        PROMPTS: digest_of(asdict(corpus)),
    }
    if settings.tokens and engine != "local":
        raise UserError("tokens.parquet is written as tokens come: leave --tokens or --engine out")
    if settings.effects:
        require_bridge("measuring the effects of experts (--effects 0 leaves them out)")
    check_run(run, IDENTITY, identity)
    begin_run(run, IDENTITY, with_clock(with_threads(identity), loaded.tokenizer))
    recorded = read_json(run / IDENTITY)
    effects = None
    with (
        using_threads(threads_of(run, IDENTITY)),
        engine_for(
            engine,
            loaded,
            load,
            fingerprint_of,
            device=device or "cpu",
            address=address,
            workers=workers,
        ) as made_by,
    ):
        records, similarity = count_routing(
            run,
            loaded,
            corpus,
            recorded,
            made_by,
            routers=settings.routers,
            tokens=settings.tokens,
            seed=settings.seed,
            progress=progress,
        )
        if settings.effects:
            effects = switch_experts_off(
                run,
                loaded,
                _drawn(examples, settings.effects),
                recorded,
                made_by,
                budget=settings.effects_budget,
                seed=settings.seed,
                progress=progress,
            )
    return _concluded(run, loaded, corpus, settings, records, similarity, effects)


def _concluded(
    run: Path,
    loaded: AdaptedModel,
    corpus: LabelledCorpus,
    settings: AnalyzeSettings,
    records: RoutingRecords,
    similarity: OutputSimilarity,
    effects: ExpertEffects | None,
) -> dict[str, Any]:
    """Measures, tables and page from what the slow passes left; returns measures.json."""
    found = measure_specialization(
        records, draws=settings.draws, token_draws=settings.token_draws, seed=settings.seed
    )
    found.save(run)
    agreement = None
    if effects is not None:
        agreement = routing_agreement(effects, found.experts, fdr=settings.fdr)
        write_table(run / "agreement.csv", agreement.to_dataframe())
    content = {
        **measures_of(corpus, records, found, similarity, settings),
        "effects": None if agreement is None else _of_effects(effects, agreement, settings),
    }
    described = describe_hf_model(
        loaded.model.get_base_model(),
        loaded.tokenizer,
        spec=loaded.spec,
        fingerprint=loaded.base_fingerprint,
    )
    write_manifest(
        run,
        described,
        prompts=None,
        adapter_sha256=loaded.adapter_sha256,
        settings=asdict(settings),
        seed=settings.seed,
        **noted_prompts(read_json(run / IDENTITY)),
    )
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
    found: list[Example] = []
    for source in settings.data:
        split = load_split(source, columns=columns)
        parts = {"train": split.train, "test": split.test, "both": (*split.train, *split.test)}
        found += parts[settings.part]
    return [one for some in _drawn(found, settings.limit).values() for one in some]


def measures_of(
    corpus: LabelledCorpus,
    records: RoutingRecords,
    found: Specialization,
    similarity: OutputSimilarity,
    settings: AnalyzeSettings,
) -> dict[str, Any]:
    """What measures.json says of routing: means over projections, counts of what is significant."""
    summary = found.summary(fdr=settings.fdr).astype(object)
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
        "task_entropy": float(entropy(list(tokens.values()))),
        "projections": len(records.projections),
        "fdr": settings.fdr,
        "measures": measures,
        "experts": {
            "experts": sum(one.experts for one in records.projections),
            "tested": len(found.experts),
            "significant": int((found.experts["q_value"] <= settings.fdr).sum()),
        },
        "dead_experts": int(records.by_projection()["dead"].sum()),
        "similarity": {
            "n": similarity.n,
            **alike.where(alike.notna(), None).to_dict(),
        },
    }


def _of_effects(effects: Any, agreement: RoutingAgreement, settings: AnalyzeSettings) -> Any:
    """What measures.json says of effects, and of how they agree with routing."""
    table = effects.to_dataframe()
    numbers = {
        name: getattr(agreement, name)
        for name in ("n", "share", "chance", "p_value", "spearman", "spearman_p")
    }
    return {
        "examples": len(effects.loss),
        "tested": len(table),
        "significant": int((table["q_value"] <= settings.fdr).sum()),
        "agreement": {
            name: None if math.isnan(number) else number for name, number in numbers.items()
        },
    }


def _drawn(examples: Sequence[Example], n: int | None) -> dict[str, list[Example]]:
    """By task, its questions, at most ``n`` of them."""
    tasks = dict.fromkeys(one.task for one in examples)
    return {task: draw([one for one in examples if one.task == task], n) for task in tasks}


def _effects_part(effects: ExpertEffects | None, agreement: RoutingAgreement | None) -> EffectsPart:
    if effects is None or agreement is None:
        return EffectsPart()
    placed = PlacedFigure.place("effects", effects.plot(), "The experts with the largest effects.")
    return EffectsPart(agreement_sentences(agreement), (placed,), agreement_rows(agreement))
