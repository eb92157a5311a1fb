"""``interp locate`` as a function: from a relation to a run directory with every head's effect.

A run is cut into stages, each of which leaves whole files: which facts are known, the effects of
each site, the tables. The same call again takes up what is there; another model, relation or
seed in the same directory is refused.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from interp.errors import UserError
from interp.heads.effects import HeadEffects, Method, load_effects, save_effects
from interp.heads.headset import Site
from interp.heads.locate import as_encoded, batch_metrics, locate_heads
from interp.heads.selection import count_of_fraction
from interp.models import fingerprint
from interp.patching.metrics import LogitDifference
from interp.premises.knowledge import MINIMUM_KNOWN, KnowledgeCheck
from interp.premises.questions import load_premises
from interp.premises.split import Split
from interp.runs.choice import check_choice
from interp.runs.dtype_check import N_PROMPTS, TOP_HEADS, Measure, dtype_check
from interp.runs.known import known_part, premise_rows, split_known
from interp.runs.manifest import read_manifest, write_manifest
from interp.runs.store import write_table
from interp.untrusted import check_links, from_mapping, read_json_lines

logger = logging.getLogger(__name__)

SiteChoice = Literal["output", "attention", "both"]
DEFAULT_FRACTION = 0.01
IDENTITY = "search.json"


@dataclass(frozen=True)
class LocateSettings:
    """What decides the outcome of a search for heads; part of the run's identity."""

    premises: str = "capitals"
    method: Method = "attribution"
    site: SiteChoice = "both"
    check: KnowledgeCheck = "strict"
    limit: int | None = None
    minimum: int = MINIMUM_KNOWN
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, Method)
        check_choice("site", self.site, SiteChoice)
        check_choice("check", self.check, KnowledgeCheck)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that are searched."""
        return ("output", "attention") if self.site == "both" else (self.site,)


def locate_run(
    model: Any, settings: LocateSettings, run: Path, *, progress: bool = True
) -> dict[Site, HeadEffects]:
    """Find what every head does, and leave it in ``run``. Returns the effects by site."""
    split = split_known(
        model, run, IDENTITY, {**asdict(settings), "fingerprint": fingerprint(model)},
        minimum=settings.minimum, progress=progress,
    )  # fmt: skip
    effects = _effects(model, split, settings, run, progress)
    selected = {
        site: one.select(count=count_of_fraction(DEFAULT_FRACTION, one.values[0].numel()))
        for site, one in effects.items()
    }
    tables = [one.to_dataframe(selected[site]) for site, one in effects.items()]
    write_table(run / "heads.csv", pd.concat(tables, ignore_index=True))
    few = _on_a_few(split, settings, effects)
    write_manifest(
        run, model, settings=asdict(settings), seed=settings.seed,
        **dtype_check(model, few),
    )  # fmt: skip
    return effects


def _on_a_few(split: Split, settings: LocateSettings, effects: dict[Site, HeadEffects]) -> Measure:
    """The metric and the effects of the first heads on a few prompts, for another dtype."""
    site = settings.sites[0]
    n_heads = effects[site].values.shape[2]
    order = effects[site].mean.abs().flatten().argsort(descending=True)[:TOP_HEADS]
    layers, heads = order // n_heads, order % n_heads
    chosen = tuple(zip(layers.tolist(), heads.tolist(), strict=True))

    def measure(model: Any) -> tuple[Tensor, Tensor]:
        every = as_encoded(model, split.search)
        few = every.take(range(min(N_PROMPTS, len(every))))
        metric = LogitDifference(few.true_tokens, few.false_tokens)
        found = locate_heads(
            model, few, method=settings.method, site=site, seed=settings.seed, progress=False,
            heads=None if settings.method == "attribution" else chosen,
        )  # fmt: skip
        return batch_metrics(model, few.batch("false"), (metric,))[0], found.values[
            :, layers, heads
        ]

    return measure


def _effects(
    model: Any, split: Split, settings: LocateSettings, run: Path, progress: bool
) -> dict[Site, HeadEffects]:
    path = run / "effects.safetensors"
    found: dict[Site, HeadEffects] = {}
    if path.is_file():
        found = {site: one for site, one in load_effects(path).items() if site in settings.sites}  # type: ignore[misc]
    for site in settings.sites:
        if site in found:
            logger.info("site %s: taken from %s", site, path)
            continue
        found[site] = locate_heads(
            model, split.search, method=settings.method, site=site, seed=settings.seed,
            progress=progress,
        )  # fmt: skip
        save_effects(path, list(found.values()))
    return {site: found[site] for site in settings.sites}


def load_run(run: Path) -> tuple[LocateSettings, Split, dict[Site, HeadEffects]]:
    """What ``locate_run`` left, checked against the premises as they are today.

    Raises:
        UserError: no run, or facts or templates that have changed since.
    """
    check_links(run)
    recorded = read_manifest(run)
    try:
        settings = from_mapping(LocateSettings, recorded.get("settings"), "settings")
    except UserError as error:
        raise UserError(
            f"{run / 'manifest.json'} is damaged ({error}): make the run again"
        ) from error
    premises = load_premises(settings.premises, seed=settings.seed, limit=settings.limit)
    split = known_part(premises, run).split(seed=settings.seed)
    now = [json.loads(json.dumps(row)) for row in premise_rows(split)]
    then = [row for _, row in read_json_lines(run / "premises.jsonl")]
    if now != then:
        raise UserError(
            f"the facts or templates of {settings.premises!r} have changed since {run} was made: "
            "run `interp locate` again into another directory"
        )
    effects = load_effects(run / "effects.safetensors")
    if missing := [site for site in settings.sites if site not in effects]:
        raise UserError(
            f"{run / 'effects.safetensors'} has no site {missing[0]}: run `interp locate` again"
        )
    return settings, split, {site: effects[site] for site in settings.sites}
