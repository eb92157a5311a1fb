"""``interp locate --premises A B C``: one search over several relations.

Every relation is searched by itself, in ``relations/NAME`` of the run's directory, which is a run
of ``interp locate`` like any other: it is resumed, read and reported as such. Beside them are the
tables of all relations together: ``heads.csv`` (pooled), ``heads_by_relation.csv`` and
``stability.csv``. A relation of which the model knows too little is left out, and named.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from interp.commands.known import premise_rows
from interp.commands.locate import (
    DEFAULT_FRACTION,
    EFFECTS,
    IDENTITY,
    LocateSettings,
    check_same_prompts,
    load_run,
    locate_run,
)
from interp.commands.marks import mark_again
from interp.errors import UserError
from interp.files.documents import read_json, write_json, write_jsonl, write_table
from interp.files.links import check_links
from interp.files.shape import check_shape
from interp.heads.effects import HeadEffects, save_effects
from interp.heads.headset import Site
from interp.heads.joint import JointEffects, pool_effects
from interp.jobs import RUN_HERE, JobRunner
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnySplit, JointSplit
from interp.premises.knowledge import TooFewKnown
from interp.premises.questions import Split
from interp.premises.registry import load_relation
from interp.runs.clock import one_moment, with_clock
from interp.runs.identity import begin_run, check_run, model_identity
from interp.runs.lock import one_process
from interp.runs.manifest import write_manifest
from interp.runs.resources import budget_entry, run_resources, with_resources
from interp.runs.shards import Engine

logger = logging.getLogger(__name__)

RELATIONS = Path("relations")
"""The folder of a run over several relations that holds the run of each."""
SEARCHED = "relations.json"
STABILITY_HEADS = 8

AnyEffects = HeadEffects | JointEffects
"""Effects in one relation, or in several."""


@one_process
@one_moment(IDENTITY)
def locate_joint_run(
    model: HookedModel,
    settings: LocateSettings,
    run: Path,
    *,
    engine: Engine | None = None,
    runner: JobRunner = RUN_HERE,
    check_dtype: bool = True,
    progress: bool = True,
) -> dict[Site, JointEffects]:
    """Measure every head's effect in each relation, and write the pooled tables to ``run``.

    Args:
        settings: of the search in each relation.
        engine, runner, check_dtype: as `locate_run` takes them.

    Raises:
        UserError: a relation that is given twice, another run in the directory, or too few known
            facts in every relation.
    """
    relations = settings.relations
    names = relation_names(relations)
    identity = {**asdict(settings), "premises": list(relations), **model_identity(model)}
    check_run(run, IDENTITY, identity)
    begin_run(run, IDENTITY, with_clock(with_resources(identity, model), model.tokenizer))
    found: dict[str, dict[Site, HeadEffects]] = {}
    left_out: dict[str, str] = {}
    with run_resources(run, IDENTITY, model):
        for given, name in zip(relations, names, strict=True):
            logger.info("relation %s", name)
            try:
                found[name] = locate_run(
                    model,
                    replace(settings, premises=given),
                    run / RELATIONS / name,
                    engine=engine,
                    runner=runner,
                    check_dtype=check_dtype,
                    progress=progress,
                )
            except TooFewKnown as error:
                logger.warning("relation %s is left out: %s", name, error)
                left_out[name] = str(error)
    if not found:
        raise UserError(f"no relation is left to search: {next(iter(left_out.values()))}")
    effects: dict[Site, JointEffects] = {
        site: pool_effects([of_site[site] for of_site in found.values()], tuple(found))
        for site in settings.sites
    }
    write_json(run / SEARCHED, {"relations": list(found), "left_out": left_out})
    _write_tables(run, effects)
    noted = {"settings": {**asdict(settings), "premises": list(relations)}, "seed": settings.seed}
    noted |= {"relations": list(found), **budget_entry(run, IDENTITY, model)}
    write_manifest(run, model, **noted)
    return effects


def search_run(
    model: HookedModel, settings: LocateSettings, run: Path, **options: Any
) -> Mapping[Site, AnyEffects]:
    """`locate_run` for one relation, `locate_joint_run` for several."""
    search = locate_run if len(settings.relations) == 1 else locate_joint_run
    return search(model, settings, run, **options)


def relation_names(relations: Sequence[str]) -> tuple[str, ...]:
    """The names of relations given by name or file. Raises UserError for a repeated one."""
    names = tuple(load_relation(given).name for given in relations)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the relation {name!r} is given twice")
    return names


def _write_tables(run: Path, effects: Mapping[Site, JointEffects]) -> None:
    """The tables of all relations together, the prompts, and the pooled effects."""
    joint = next(iter(effects.values()))
    _, split, _ = _load_relations(run, joint.relations)
    pooled, by_relation, stability = [], [], []
    for site, found in effects.items():
        pooled.append(found.to_dataframe(found.select(fraction=DEFAULT_FRACTION)))
        by_relation.append(found.relations_dataframe())
        table = found.stability(min(STABILITY_HEADS, found.n_heads // 2))
        stability.append(table.assign(site=site))
    write_jsonl(run / "premises.jsonl", (row for of in split.splits for row in premise_rows(of)))
    save_effects(run / EFFECTS, [found.pooled for found in effects.values()])
    for name, tables in (("heads_by_relation", by_relation), ("stability", stability)):
        write_table(run / f"{name}.csv", pd.concat(tables, ignore_index=True))
    write_table(run / "heads.csv", pd.concat(pooled, ignore_index=True))
    mark_again(run)


def searched_relations(run: Path) -> tuple[str, ...]:
    """The relations of a run over several; empty for a run of one relation."""
    path = run / SEARCHED
    if not path.is_file():
        return ()
    content: dict[str, Any] = check_shape(read_json(path), {"relations": [str]}, str(path))
    return tuple(content["relations"])


def load_search(run: Path) -> tuple[LocateSettings, AnySplit, Mapping[Site, AnyEffects]]:
    """The settings, split and effects of a run over one relation or several; see `load_run`."""
    check_links(run)
    names = searched_relations(run)
    return _load_relations(run, names) if names else load_run(run)


def _load_relations(
    run: Path, names: Sequence[str]
) -> tuple[LocateSettings, JointSplit, dict[Site, JointEffects]]:
    parts = [load_run(run / RELATIONS / name) for name in names]
    settings = parts[0][0]
    splits: tuple[Split, ...] = tuple(split for _, split, _ in parts)
    effects: dict[Site, JointEffects] = {
        site: pool_effects([of_site[site] for _, _, of_site in parts], names)
        for site in settings.sites
    }
    return settings, JointSplit(splits), effects


def check_prompts(run: Path, model: HookedModel) -> None:
    """`check_same_prompts` for a run over one relation or several."""
    names = searched_relations(run)
    for folder in [run / RELATIONS / name for name in names] or [run]:
        check_same_prompts(folder, model)
