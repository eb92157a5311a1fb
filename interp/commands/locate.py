"""``interp locate`` as a function: from a relation to a run directory with every head's effect.

A run is cut into stages, each of which leaves whole files: which facts are known, the effects of
each shard of prompts at each site, all effects, the tables. The same call again takes up what is
there, and leaves the same bytes as if it had never been interrupted; another model, relation or
seed in the same directory is refused.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import Tensor

from interp.commands.dtype_check import N_PROMPTS, TOP_HEADS, Measure, note_dtype_check
from interp.commands.known import known_part, premise_rows, prompts_digest, split_known
from interp.commands.prompts_identity import prompts_identity
from interp.errors import UserError
from interp.files import (
    check_links,
    check_shape,
    check_tensors,
    from_mapping,
    read_json_lines,
)
from interp.files.choice import check_choice
from interp.files.documents import read_json, write_table
from interp.files.tensor_file import read_tensor_file
from interp.forward.memory import using_budget
from interp.forward.trial import sweep_resolution
from interp.heads.effects import HeadEffects, Method, count_of_fraction, load_effects, save_effects
from interp.heads.headset import Site
from interp.heads.locate import as_encoded, batch_metrics, locate_heads
from interp.jobs import SHARD, Shard
from interp.models import fingerprint
from interp.models.hooked_model import HookedModel
from interp.patching.metrics import LogitDifference
from interp.premises.encode import EncodedPremises
from interp.premises.knowledge import MINIMUM_KNOWN, KnowledgeCheck
from interp.premises.questions import Split, load_premises
from interp.runs.clock import one_moment, run_clock
from interp.runs.identity import model_identity
from interp.runs.lock import one_process
from interp.runs.manifest import (
    check_same_asking,
    check_same_model,
    read_manifest,
    recorded_model,
    write_manifest,
)
from interp.runs.model_conditions import conditions
from interp.runs.pass_memory import budget_entry, budget_of
from interp.runs.prompting import PROMPTS, noted_prompts
from interp.runs.shards import (
    Engine,
    InProcess,
    ShardStore,
    cut,
    digest_of,
    make_shards,
    put_together,
    remove_shards,
)
from interp.runs.threads import threads_of, using_threads

logger = logging.getLogger(__name__)

SiteChoice = Literal["output", "attention", "both"]
DEFAULT_FRACTION = 0.01
IDENTITY = "search.json"
EFFECTS = "effects.safetensors"
SHARDS = Path("shards") / "locate"


@dataclass(frozen=True)
class LocateSettings:
    """What decides the outcome of a search for heads; part of the run's identity."""

    premises: str = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file."""
    method: Method = "attribution"
    """path: the paper's, exact; activation: exact, nothing frozen; attribution: by gradient."""
    site: SiteChoice = "both"
    """What a head writes at the false object, what it reads from there, or both."""
    check: KnowledgeCheck = "strict"
    """The knowledge check: the cloze's top tokens, or a greedy answer that names the object."""
    limit: int | None = None
    """Only the first so many facts."""
    minimum: int = MINIMUM_KNOWN
    """How many facts the model must know."""
    seed: int = 0
    """Draws false objects and splits."""
    shard: int = SHARD
    """Prompts that are worked on, and kept, together; part of what the run is."""

    def __post_init__(self) -> None:
        for name in ("minimum", "shard"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        check_choice("method", self.method, Method)
        check_choice("site", self.site, SiteChoice)
        check_choice("check", self.check, KnowledgeCheck)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are searched."""
        return ("output", "attention") if self.site == "both" else (self.site,)


@one_process
@one_moment(IDENTITY)
def locate_run(
    model: HookedModel,
    settings: LocateSettings,
    run: Path,
    *,
    engine: Engine | None = None,
    check_dtype: bool = True,
    progress: bool = True,
) -> dict[Site, HeadEffects]:
    """Find what every head does, and leave it in ``run``. Returns the effects by site.

    Args:
        engine: where the shards of the sweeps are made; by default in this process.
        check_dtype: compare a run of another dtype with float32 at its end.

    Raises:
        UserError: another run in the directory, or another process; too few known facts.
    """
    split = split_known(
        model,
        run,
        IDENTITY,
        {**asdict(settings), **model_identity(model)},
        minimum=settings.minimum,
        progress=progress,
    )
    budget = budget_of(run, IDENTITY, model)
    with using_threads(threads_of(run, IDENTITY)), using_budget(budget):
        effects = _effects(model, split, settings, run, engine or InProcess(model), progress)
    selected = {
        site: one.select(count=count_of_fraction(DEFAULT_FRACTION, one.values[0].numel()))
        for site, one in effects.items()
    }
    tables = [one.to_dataframe(selected[site]) for site, one in effects.items()]
    write_table(run / "heads.csv", pd.concat(tables, ignore_index=True))
    write_manifest(
        run,
        model,
        settings=asdict(settings),
        seed=settings.seed,
        **noted_prompts(read_json(run / IDENTITY)),
        **budget_entry(run, IDENTITY, model),
    )
    remove_shards(run / SHARDS)
    note_dtype_check(run, model, _on_a_few(split, settings, effects), made=check_dtype)
    return effects


def _on_a_few(split: Split, settings: LocateSettings, effects: dict[Site, HeadEffects]) -> Measure:
    """The metric and the effects of the first heads on a few prompts, for another dtype."""
    site = settings.sites[0]
    n_heads = effects[site].values.shape[2]
    order = effects[site].mean.abs().flatten().argsort(descending=True)[:TOP_HEADS]
    layers, heads = order // n_heads, order % n_heads
    chosen = tuple(zip(layers.tolist(), heads.tolist(), strict=True))

    def measure(model: HookedModel) -> tuple[Tensor, Tensor]:
        every = as_encoded(model, split.search)
        few = every.take(range(min(N_PROMPTS, len(every))))
        metric = LogitDifference(few.true_tokens, few.false_tokens)
        found = locate_heads(
            model,
            few,
            method=settings.method,
            site=site,
            seed=settings.seed,
            progress=False,
            heads=None if settings.method == "attribution" else chosen,
        )
        return batch_metrics(model, few.batch("false"), (metric,))[0], found.values[
            :, layers, heads
        ]

    return measure


def _effects(
    model: HookedModel,
    split: Split,
    settings: LocateSettings,
    run: Path,
    engine: Engine,
    progress: bool,
) -> dict[Site, HeadEffects]:
    """The effects at all sites: from their file, or put together from shards."""
    prompts = read_json(run / IDENTITY)[PROMPTS]
    path, digest = run / EFFECTS, effects_digest(settings, fingerprint(model), split, prompts)
    try:
        found = _effects_of(path, digest)
    except UserError as error:
        if path.exists():
            logger.warning("%s: the effects are made again", error)
    else:
        logger.info("effects: taken from %s", path)
        return {site: found[site] for site in settings.sites}
    encoded = as_encoded(model, split.search)
    parts = cut(encoded.by_length("false"), settings.shard)  # of like lengths: less to run
    effects = {}
    for site in settings.sites:
        identity = {"run": digest, "site": site, "model": conditions(model)}
        store = ShardStore(run / SHARDS, identity, len(parts))
        shards = make_shards(
            store,
            engine,
            locate_shard,
            lambda number, site=site: LocateJob(
                encoded.take(parts[number]), settings.method, site, settings.seed
            ),
            description=f"site {site}",
            progress=progress,
        )
        source = check_shape(shards[0].kept, {"source": str}, "a shard")["source"]
        whole = put_together(shards, parts).tensors
        check_tensors(whole, values=3, probability=3)
        effects[site] = HeadEffects(
            **whole,
            subjects=encoded.subjects,
            templates=encoded.templates,
            site=site,
            method=settings.method,
            source=source,
            seed=settings.seed,
            resolution=sweep_resolution(model),
        )
    save_effects(path, list(effects.values()), kept={"run": digest})
    return effects


@dataclass(frozen=True)
class LocateJob:
    """What one shard of a search needs, beside the model."""

    encoded: EncodedPremises
    method: Method
    site: Site
    seed: int


def locate_shard(model: HookedModel, job: LocateJob) -> Shard:
    """The effects of all heads on some prompts."""
    found = locate_heads(
        model, job.encoded, method=job.method, site=job.site, seed=job.seed, progress=False
    )
    return Shard(
        {"values": found.values, "probability": found.probability},
        kept={"source": found.source},
    )


def effects_digest(
    settings: LocateSettings, model: str, split: Split, prompts: str | None = None
) -> str:
    """What decides every value of a run's effects.

    Args:
        prompts: digest of the prompts as tokens; None in runs of older versions.
    """
    whole = {"settings": asdict(settings), "fingerprint": model, "prompts": prompts_digest(split)}
    return digest_of(whole if prompts is None else {**whole, PROMPTS: prompts})


def check_same_prompts(run: Path, model: HookedModel) -> None:
    """Raise unless this model is the run's and is asked today what it was asked when it was made.

    Raises:
        UserError: another model, tokenizer or chat template; other facts or question templates;
            prompts that are rendered in another way.
    """
    check_same_model(run, model)
    if PROMPTS not in read_manifest(run):  # an older version's, of which a warning was given
        return
    settings = _settings_of(run)
    premises = load_premises(settings.premises, seed=settings.seed, limit=settings.limit)
    with run_clock(run, IDENTITY):
        check_same_asking(run, prompts_identity(model.tokenizer, premises))


def _effects_of(path: Path, digest: str) -> dict[str, HeadEffects]:
    """The effects in a file. Raises UserError for a damaged file, and for another run's."""
    found = load_effects(path)
    if read_tensor_file(path)[1].get("run") != digest:
        raise UserError(f"{path} holds the effects of another run")
    return found


def load_run(run: Path) -> tuple[LocateSettings, Split, dict[Site, HeadEffects]]:
    """What ``locate_run`` left, checked against the premises as they are today.

    Raises:
        UserError: no run, or facts or templates that have changed since.
    """
    check_links(run)
    settings = _settings_of(run)
    premises = load_premises(settings.premises, seed=settings.seed, limit=settings.limit)
    split = known_part(premises, run).split(seed=settings.seed)
    now = [json.loads(json.dumps(row)) for row in premise_rows(split)]
    then = [row for _, row in read_json_lines(run / "premises.jsonl")]
    if now != then:
        raise UserError(
            f"the facts or templates of {settings.premises!r} have changed since {run} was made: "
            "run `interp locate` again into another directory"
        )
    model, prompts = recorded_model(run)["fingerprint"], read_manifest(run).get(PROMPTS)
    effects = _effects_of(run / EFFECTS, effects_digest(settings, model, split, prompts))
    if missing := [site for site in settings.sites if site not in effects]:
        raise UserError(f"{run / EFFECTS} has no site {missing[0]}: run `interp locate` again")
    return settings, split, {site: effects[site] for site in settings.sites}


def _settings_of(run: Path) -> LocateSettings:
    """The settings in a run's manifest. Raises UserError where they cannot be relied on."""
    try:
        return from_mapping(LocateSettings, read_manifest(run).get("settings"), "settings")
    except UserError as error:
        raise UserError(
            f"{run / 'manifest.json'} is damaged ({error}): make the run again"
        ) from error
