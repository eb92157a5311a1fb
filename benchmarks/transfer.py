"""The tables of docs/transfer.md: heads of some relations scored on the one left out.

Each relation's known facts are split by subject and template; the heads are searched at the
attention site on its search part. Then every relation's held-out part is scored under the heads of
all others, chosen by the mean, the worst relation and votes, and under its own, beside random sets
matched per layer.

The baseline is FAITH's own way: path patching at the output site, heads ranked by the votes of the
prompts, their output set to zero at the object. It is searched on fewer prompts of each relation,
since it takes four seconds a prompt.

    python benchmarks/transfer.py --work DIR

DIR keeps every relation's known facts, effects and scores, so that an interrupted call goes on.
Writes benchmarks/results/transfer.json. About four minutes a relation on two cores.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from marked import write_between

import interp
from interp.evaluation.transfer import OTHERS, Transfer, score_transfer
from interp.figures.tables import where
from interp.files.documents import write_json, write_table
from interp.heads import HeadEffects, JointEffects, locate_heads
from interp.heads.effects import VOTE_THRESHOLD
from interp.heads.joint import SelectedBy
from interp.heads.locate import as_encoded
from interp.interventions import Constraint
from interp.premises import Premises, list_relations
from interp.premises.knowledge import TooFewKnown, check_knowledge
from interp.runs.manifest import versions

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "transfer.json"
PAGE = ROOT / "docs" / "transfer.md"
SITE = "attention"
BY: tuple[SelectedBy, ...] = ("worst", "votes")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What is searched and scored."""

    work: Path
    """Folder that keeps known facts, effects and scores."""
    model: str = "smollm2-135m"
    """Any model of `interp.load_model`."""
    relations: tuple[str, ...] = ()
    """By default every relation that ships and whose false object is another fact's."""
    limit: int = 130
    """How many facts of each relation the model is asked, best known first."""
    known: int = 44
    """How many known facts of each are used."""
    minimum: int = 16
    """Relations with fewer known facts are left out."""
    strong: int = 40
    """Relations with so many known facts are also averaged by themselves."""
    counts: tuple[int, ...] = (1, 3, 5, 8)
    """Numbers of heads."""
    random_sets: int = 20
    """Random sets matched to the largest number of heads."""
    only_baseline: bool = False
    """Keep the other rows of the results, which must be of the same settings."""
    path_prompts: int = 16
    """Prompts of each relation's search part on which FAITH's own way searches."""
    seed: int = 0


def main(options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    model = interp.load_model(options.model)
    premises, n_known = facts_of(model, options)
    strong = [name for name in premises if n_known[name] >= options.strong]
    settings = {
        **{"model": options.model, "seed": options.seed, "site": SITE},
        **{"known": n_known, "tried": options.limit, "strong": strong},
    }
    if options.only_baseline:
        content = json.loads(RESULTS.read_text("utf-8"))
        if changed := [name for name, value in settings.items() if content[name] != value]:
            raise SystemExit(f"the other rows are of other settings: {', '.join(changed)}")
    else:
        content = {
            **settings,
            "versions": versions(),
            **joint_rows(model, premises, strong, options),
        }
    content["baseline"] = baseline_rows(model, premises, strong, options) | {"versions": versions()}
    write_json(RESULTS, content)
    write_between(PAGE, "measured", page(content))


def joint_rows(
    model: Any, premises: dict[str, Premises], strong: list[str], options: Options
) -> dict[str, Any]:
    """Every relation under the heads of all others and under its own, chosen by attribution."""
    joint = JointEffects({name: effects_of(model, one, options) for name, one in premises.items()})
    tables = [
        scores_of(model, one.split(seed=options.seed).held_out, joint, options)
        for one in premises.values()
    ]
    stability = joint.stability(max(options.counts), seed=options.seed)
    found = rows_and_means(tables, strong, seed=options.seed)
    return {**found, "stability": as_records(stability)}


def baseline_rows(
    model: Any, premises: dict[str, Premises], strong: list[str], options: Options
) -> dict[str, Any]:
    """The same under the heads that FAITH's own way finds."""
    joint = JointEffects(
        {name: path_effects_of(model, one, options) for name, one in premises.items()}
    )
    tables = [
        baseline_of(model, one.split(seed=options.seed).held_out, joint, options)
        for one in premises.values()
    ]
    found = rows_and_means(tables, strong, seed=options.seed)
    return {"prompts": options.path_prompts, **found}


def rows_and_means(tables: list[pd.DataFrame], strong: list[str], *, seed: int) -> dict[str, Any]:
    """All rows, and their means over all relations and over those with many known facts."""
    table = pd.concat(tables, ignore_index=True)
    chosen = where(table, table["scored"].isin(strong))
    return {
        "rows": as_records(table),
        "means": as_records(Transfer(table).over_relations(seed=seed)),
        "means_strong": as_records(Transfer(chosen).over_relations(seed=seed)),
    }


def facts_of(model: Any, options: Options) -> tuple[dict[str, Premises], dict[str, int]]:
    """By relation: the known facts that are used, and how many facts are known."""
    names = options.relations or tuple(
        name
        for name in list_relations()
        if interp.load_premises(name).relation.false_object == "another"
    )
    premises: dict[str, Premises] = {}
    n_known: dict[str, int] = {}
    for name in names:
        try:
            premises[name], n_known[name] = known_facts(model, name, options)
        except TooFewKnown as error:
            logger.info("%s: left out, %s", name, error)
            continue
        logger.info("%s: %d known", name, n_known[name])
    return premises, n_known


def searched(
    model: Any, options: Options
) -> tuple[dict[str, Premises], dict[str, HeadEffects], dict[str, int]]:
    """As `facts_of`, with the effects of all heads."""
    premises, n_known = facts_of(model, options)
    effects = {name: effects_of(model, one, options) for name, one in premises.items()}
    return premises, effects, n_known


def known_facts(model: Any, name: str, options: Options) -> tuple[Premises, int]:
    """The first known facts of a relation, and how many are known of those that were tried."""
    file = options.work / f"{name}.json"
    tried = interp.load_premises(name, seed=options.seed, limit=options.limit)
    if not file.is_file():
        knowledge = check_knowledge(model, tried, progress=False)
        subjects = [fact.subject for fact in knowledge.facts if fact.known]
        write_json(file, {"known": len(subjects), "subjects": subjects[: options.known]})
    found = json.loads(file.read_text("utf-8"))
    if found["known"] < options.minimum:
        raise TooFewKnown(f"{found['known']} of {len(tried.facts)} facts known")
    used = set(found["subjects"])
    return tried.with_facts(fact for fact in tried.facts if fact.subject in used), found["known"]


def effects_of(model: Any, premises: Premises, options: Options) -> HeadEffects:
    """The effects of all heads on a relation's search part."""
    file = options.work / f"{premises.relation.name}.safetensors"
    if file.is_file():
        return HeadEffects.load(file, SITE)
    search = premises.split(seed=options.seed).search
    found = locate_heads(model, search, site=SITE, seed=options.seed, progress=False)
    assert isinstance(found, HeadEffects)
    found.save(file)
    logger.info("%s: searched", premises.relation.name)
    return found


def path_effects_of(model: Any, premises: Premises, options: Options) -> HeadEffects:
    """FAITH's effects of all heads, on prompts spread over a relation's search part."""
    name = premises.relation.name
    file = options.work / f"{name}-path-{options.path_prompts}.safetensors"
    if file.is_file():
        return HeadEffects.load(file, "output")
    search = as_encoded(model, premises.split(seed=options.seed).search)
    n_prompts = min(options.path_prompts, len(search))
    spread = [len(search) * number // n_prompts for number in range(n_prompts)]
    found = locate_heads(
        model, search.take(spread), method="path", site="output", seed=options.seed, progress=False
    )
    assert isinstance(found, HeadEffects)
    found.save(file)
    logger.info("%s: searched by path patching", name)
    return found


def baseline_of(model: Any, held_out: Premises, by_path: JointEffects, options: Options) -> Any:
    """A relation's held-out part under heads that FAITH's own way finds."""
    name = held_out.relation.name
    searched = {OTHERS: by_path.without(name).pooled, name: by_path.by_relation[name]}
    constraints = {
        of: [Constraint(found.select(count=n, vote=VOTE_THRESHOLD)) for n in options.counts]
        for of, found in searched.items()
    }
    return kept_scores(model, held_out, constraints, options, of=f"path-{options.path_prompts}-")


def scores_of(model: Any, held_out: Premises, joint: JointEffects, options: Options) -> Any:
    """A relation's held-out part under the heads of all others and under its own."""
    name = held_out.relation.name
    rest, most = joint.without(name), max(options.counts)
    constraints = {
        OTHERS: [Constraint(rest.select(count=count)) for count in options.counts],
        **{f"{OTHERS}, {by}": [Constraint(rest.select(count=most, by=by))] for by in BY},
        name: [Constraint(joint.by_relation[name].select(count=n)) for n in options.counts],
    }
    return kept_scores(model, held_out, constraints, options)


def kept_scores(
    model: Any,
    held_out: Premises,
    constraints: dict[str, list[Constraint]],
    options: Options,
    *,
    of: str = "",
) -> Any:
    """The scores of constraints on a relation's held-out part, kept in a file named ``of`` them.

    Random sets are matched to the most heads of all others.
    """
    name = held_out.relation.name
    file = options.work / f"{name}-{of}{'-'.join(map(str, options.counts))}.csv"
    if file.is_file():
        return pd.read_csv(file)
    table = score_transfer(
        model,
        held_out,
        constraints,
        random_sets=options.random_sets,
        matched_to=constraints[OTHERS][options.counts.index(max(options.counts))],
        seed=options.seed,
        progress=False,
    )
    logger.info("%s: scored %s", name, of)
    write_table(file, table)
    return table


def as_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them: null for what is not known."""
    found = table.astype(object)
    return found.where(found.notna(), None).to_dict("records")


def page(content: dict[str, Any]) -> str:
    """The tables as Markdown."""
    known, baseline = content["known"], content["baseline"]
    lines = [
        f"{content['model']}, attention site, mode zero, seed {content['seed']}; "
        f"{len({row['scored'] for row in content['rows']})} relations, of each the first known of "
        f"{content['tried']} facts. 95 % intervals from resampling subjects, of means from "
        "resampling relations.",
        "",
        "| relation | known | n | no constraint | all others, 8 heads | its own, 8 heads | "
        "random sets | fall on twins, points | fall of P(true object), twins |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [row for row in content["rows"] if row["n_heads"] == 8]
    by = {(row["scored"], row["searched"]): row for row in rows}
    for name in dict.fromkeys(row["scored"] for row in rows):
        others, own = by[name, OTHERS], by[name, name]
        lines.append(
            f"| {name} | {known[name]} | {others['n']} | {others['baseline']:.2f} | "
            f"{interval(others, 'preference_accuracy')} | "
            f"{own['preference_accuracy']:.2f} | {others['random_mean']:.2f} | "
            f"{100 * others['cost']:.1f} | {interval(others, 'p_true_cost')} |"
        )
    many = f"relations with many known facts ({len(content['strong'])})"
    lines += ["", "All relations, means:", "", *table_of(content["means"])]
    lines += ["", f"{many.capitalize()}, means:", "", *table_of(content["means_strong"])]
    means = pd.DataFrame(content["stability"]).drop(columns=["a", "b"]).astype(float).mean()
    lines += [
        "",
        f"Stability over {len(content['stability'])} pairs of relations: the best 8 heads share a "
        f"Jaccard index of {means['jaccard']:.2f} (random sets matched per layer: "
        f"{means['jaccard_null']:.2f}); all effects correlate with {means['spearman']:.2f} "
        f"(permuted within layers: {means['spearman_null']:.2f}).",
        "",
        "The baseline, FAITH's own way: path patching on "
        f"{baseline['prompts']} prompts of each relation, the heads that most prompts vote for, "
        "their output set to zero at the object. All relations, means:",
        "",
        *table_of(baseline["means"]),
        "",
        f"The baseline, {many}, means:",
        "",
        *table_of(baseline["means_strong"]),
    ]
    return "\n".join(lines)


def table_of(means: list[dict[str, Any]]) -> list[str]:
    """Means over relations as Markdown."""
    lines = [
        "| heads of | number | no constraint | prefers the truth | lowest, in | "
        "random sets | fall of P(true object), twins |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in means:
        random = "–" if row["random_mean"] is None else f"{row['random_mean']:.2f}"
        lines.append(
            f"| {row['setting']} | {row['n_heads']} | {row['baseline']:.2f} | "
            f"{interval(row, 'preference_accuracy')} | {row['worst']:.2f}, {row['worst_in']} | "
            f"{random} | {interval(row, 'p_true_cost')} |"
        )
    return lines


def interval(row: dict[str, Any], name: str) -> str:
    """A value with its interval."""
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


if __name__ == "__main__":
    main(tyro.cli(Options))
