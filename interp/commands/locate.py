"""``interp locate`` as a function: from a relation to a run directory with every head's effect.

A run has stages, each of which writes complete files: which facts are known, the effects of each
shard of prompts at each site, all effects, the tables. Repeating an interrupted call continues it,
and writes the same bytes as an uninterrupted one; another model, relation or seed in the same
directory is an error.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from interp.arguments import check_choice
from interp.commands.dtype_check import N_PROMPTS, TOP_HEADS, Measure, note_dtype_check
from interp.commands.known import (
    known_part,
    premise_rows,
    prompts_digest,
    prompts_identity,
    split_known,
)
from interp.commands.marks import mark_again
from interp.errors import UserError
from interp.files.documents import read_json, write_table
from interp.files.fields import from_mapping
from interp.files.links import check_links
from interp.files.shape import check_shape
from interp.files.tensor_file import read_tensor_file
from interp.files.text import read_json_lines
from interp.forward.trial import sweep_resolution
from interp.heads.effects import HeadEffects, Method, count_of_fraction, load_effects, save_effects
from interp.heads.headset import Site
from interp.heads.locate import as_encoded, batch_metrics, locate_heads
from interp.jobs import RUN_HERE, SHARD, JobRunner, OutputSpec, Shard
from interp.lazy import pd
from interp.models import fingerprint
from interp.models.hooked_model import HookedModel
from interp.patching.metrics import LogitDifference
from interp.premises.encode import EncodedPremises
from interp.premises.knowledge import MINIMUM_KNOWN, KnowledgeCheck
from interp.premises.questions import Split, load_premises
from interp.runs.clock import one_moment, run_clock
from interp.runs.identity import conditions, model_identity
from interp.runs.job_runner import StoredJobRunner
from interp.runs.lock import one_process
from interp.runs.manifest import (
    check_same_asking,
    check_same_model,
    read_manifest,
    recorded_model,
    write_manifest,
)
from interp.runs.prompting import PROMPTS
from interp.runs.resources import budget_entry, run_resources
from interp.runs.shards import Engine, InProcess, digest_of, remove_shards

logger = logging.getLogger(__name__)

SiteChoice = Literal["output", "attention", "both"]
DEFAULT_FRACTION = 0.01
IDENTITY = "search.json"
EFFECTS = "effects.safetensors"
SHARDS = Path("shards") / "locate"


@dataclass(frozen=True)
class LocateSettings:
    """Settings that determine the result of a search for heads; part of the run's identity."""

    premises: str | tuple[str, ...] = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file. Several are searched
    one by one, and their effects pooled with equal weight."""
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
    """Prompts in a shard, which is computed and saved as a whole; part of the run's identity."""

    def __post_init__(self) -> None:
        for name in ("minimum", "shard"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        check_choice("method", self.method, Method)
        check_choice("site", self.site, SiteChoice)
        check_choice("check", self.check, KnowledgeCheck)
        if not self.relations:
            raise UserError("premises is empty: name one relation or more")

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations that are searched."""
        return (self.premises,) if isinstance(self.premises, str) else tuple(self.premises)

    @property
    def relation(self) -> str:
        """The one relation that is searched. Raises UserError where there are several."""
        (first, *others) = self.relations
        if others:
            raise UserError(f"{1 + len(others)} relations are searched by locate_joint_run")
        return first

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites to search."""
        return ("output", "attention") if self.site == "both" else (self.site,)


@one_process
@one_moment(IDENTITY)
def locate_run(
    model: HookedModel,
    settings: LocateSettings,
    run: Path,
    *,
    engine: Engine | None = None,
    runner: JobRunner = RUN_HERE,
    check_dtype: bool = True,
    progress: bool = True,
) -> dict[Site, HeadEffects]:
    """Measure every head's effect and write it to ``run``. Returns the effects by site.

    Args:
        engine: where the shards are computed; by default in this process.
        runner: has the facts asked, which are not kept in shards.
        check_dtype: compare a run in another dtype with float32 at the end.

    Raises:
        UserError: the directory holds another run or is used by another process, or the model
            knows too few facts.
    """
    split = split_known(
        model,
        run,
        IDENTITY,
        identity={
            **asdict(settings),
            "premises": settings.relation,
            **model_identity(model),
        },
        minimum=settings.minimum,
        progress=progress,
        runner=runner,
    )
    with run_resources(run, IDENTITY, model):
        effects = _effects(
            model, split, settings, run=run, engine=engine or InProcess(model), progress=progress
        )
    tables = []
    for site_effects in effects.values():
        count = count_of_fraction(DEFAULT_FRACTION, site_effects.values[0].numel())
        tables.append(site_effects.to_dataframe(site_effects.select(count=count)))
    write_table(run / "heads.csv", pd.concat(tables, ignore_index=True))
    mark_again(run)  # of a run that was evaluated, and is located again
    noted = {"settings": asdict(settings), "seed": settings.seed}
    noted |= budget_entry(run, IDENTITY, model)
    write_manifest(run, model, identity=IDENTITY, **noted)
    remove_shards(run / SHARDS)
    note_dtype_check(run, model, _on_a_few(split, settings, effects), made=check_dtype)
    return effects


def _on_a_few(split: Split, settings: LocateSettings, effects: dict[Site, HeadEffects]) -> Measure:
    """A function for the dtype check: the metric and the largest effects on a few prompts."""
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
        before = batch_metrics(model, few.batch("false"), (metric,))[0]
        return before, found.values[:, layers, heads]

    return measure


def _effects(
    model: HookedModel,
    split: Split,
    settings: LocateSettings,
    *,
    run: Path,
    engine: Engine,
    progress: bool,
) -> dict[Site, HeadEffects]:
    """The effects at all sites: from their file, or from shards."""
    prompts = read_json(run / IDENTITY)[PROMPTS]
    path = run / EFFECTS
    digest = effects_digest(settings, fingerprint(model), split, prompts=prompts)
    try:
        finished = _effects_of(path, digest)
    except UserError as error:
        if path.exists():
            logger.warning("%s: the effects are made again", error)
    else:
        logger.info("effects: taken from %s", path)
        return {site: finished[site] for site in settings.sites}
    encoded = as_encoded(model, split.search)
    runner = StoredJobRunner(run / SHARDS, engine, conditions(model))
    effects = {}
    for site in settings.sites:
        job = LocateJob(encoded, settings.method, site, settings.seed, digest, settings.shard)
        found = runner.run(
            locate_shard, model, job, description=f"site {site}", output=LOCATED, progress=progress
        )
        source = check_shape(found.kept, {"source": str}, "a shard")["source"]
        effects[site] = HeadEffects(
            values=found.tensors["values"],
            probability=found.tensors["probability"],
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
    """Prompts in which the effects of all heads are measured at one site.

    Attributes:
        run: digest of the run that the effects belong to.
    """

    encoded: EncodedPremises
    method: Method
    site: Site
    seed: int = 0
    run: str = ""
    prompts_per_shard: int = SHARD

    def order(self) -> Sequence[int]:
        """Prompts of similar lengths next to each other."""
        return self.encoded.by_length("false")

    def take(self, prompts: Sequence[int]) -> "LocateJob":
        """The same job for some of the prompts."""
        return replace(self, encoded=self.encoded.take(prompts))

    def identity(self) -> dict[str, Any]:
        """What decides the effects."""
        return {"run": self.run, "site": self.site}


LOCATED = OutputSpec({"values": 3, "probability": 3})


def locate_shard(model: HookedModel, job: LocateJob, *, progress: bool = False) -> Shard:
    """The effects of all heads on the prompts of a job."""
    found = locate_heads(
        model, job.encoded, method=job.method, site=job.site, seed=job.seed, progress=progress
    )
    return Shard(
        {"values": found.values, "probability": found.probability}, kept={"source": found.source}
    )


def effects_digest(
    settings: LocateSettings, model: str, split: Split, *, prompts: str | None = None
) -> str:
    """The digest of everything that determines a run's effects.

    Args:
        model: fingerprint of the model.
        prompts: digest of the prompts as tokens; None in runs of older versions.
    """
    whole = {"settings": asdict(settings), "fingerprint": model, "prompts": prompts_digest(split)}
    return digest_of(whole if prompts is None else {**whole, PROMPTS: prompts})


def check_same_prompts(run: Path, model: HookedModel) -> None:
    """Check that the model is the run's, and that its prompts are those of the run.

    Raises:
        UserError: another model, tokenizer or chat template; other facts or question templates;
            prompts that are rendered differently.
    """
    check_same_model(run, model)
    if PROMPTS not in read_manifest(run):  # a run of an older version; reading it gave a warning
        return
    settings = _settings_of(run)
    premises = load_premises(settings.relation, seed=settings.seed, limit=settings.limit)
    with run_clock(run, IDENTITY):
        check_same_asking(run, prompts_identity(model.tokenizer, premises))


def _effects_of(path: Path, digest: str) -> dict[str, HeadEffects]:
    """The effects in a file. Raises UserError for a damaged file, and for another run's."""
    found = load_effects(path)
    if read_tensor_file(path)[1].get("run") != digest:
        raise UserError(f"{path} holds the effects of another run")
    return found


def load_run(run: Path) -> tuple[LocateSettings, Split, dict[Site, HeadEffects]]:
    """The settings, split and effects of a run, checked against the premises as they are now.

    Raises:
        UserError: there is no run, or its facts or templates have changed.
    """
    check_links(run)
    settings = _settings_of(run)
    premises = load_premises(settings.relation, seed=settings.seed, limit=settings.limit)
    split = known_part(premises, run).split(seed=settings.seed)
    recorded = [row for _, row in read_json_lines(run / "premises.jsonl")]
    if recorded != json.loads(json.dumps(premise_rows(split))):
        raise UserError(
            f"the facts or templates of {settings.relation!r} have changed since {run} was made: "
            "run `interp locate` again into another directory"
        )
    model, prompts = recorded_model(run)["fingerprint"], read_manifest(run).get(PROMPTS)
    effects = _effects_of(run / EFFECTS, effects_digest(settings, model, split, prompts=prompts))
    if missing := [site for site in settings.sites if site not in effects]:
        raise UserError(f"{run / EFFECTS} has no site {missing[0]}: run `interp locate` again")
    return settings, split, {site: effects[site] for site in settings.sites}


def _settings_of(run: Path) -> LocateSettings:
    """The settings in a run's manifest. Raises UserError if they are missing or damaged."""
    try:
        return from_mapping(LocateSettings, read_manifest(run).get("settings"), "settings")
    except UserError as error:
        raise UserError(
            f"{run / 'manifest.json'} is damaged ({error}): make the run again"
        ) from error
