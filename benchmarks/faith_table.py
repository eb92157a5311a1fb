"""The figures of the README and of docs/results.md: FAITH on held-out subjects and templates.

For each seed: facts that the model knows are split by subject and template; heads are found on
the search part by attribution at both sites; 3 and 8 of them are constrained and scored on the
held-out part, with matched random head sets, true-premise twins, and greedy answers.

    python benchmarks/faith_table.py --seeds 0 1 2 --limit 110

Writes benchmarks/results/faith_table.json, and with --markdown the table of docs/results.md.
"""

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import interp
from interp.evaluation import ask_all, compare_settings
from interp.files.documents import write_json
from interp.heads import HeadEffects, Site, agreement, locate_heads
from interp.interventions import Constraint, Mode
from interp.interventions.unit_table import action_name
from interp.premises import Split
from interp.premises.encode import encode_premises
from interp.runs.manifest import versions

RESULTS = Path(__file__).parent / "results" / "faith_table.json"
SITES: tuple[Site, ...] = ("output", "attention")


@dataclass(frozen=True)
class Setting:
    """A site, a mode and a head count; whether the null and greedy answers are asked for too."""

    site: Site
    count: int
    mode: Mode = "zero"
    factor: float = 0.0
    null: bool = True
    answers: bool = False

    @property
    def key(self) -> str:
        """Its name in the JSON file."""
        return f"{self.site} {action_name(self.mode, self.factor)} {self.count}"


SETTINGS = (
    Setting("output", 3),
    Setting("output", 3, "scale", -1.0),
    Setting("output", 8, null=False, answers=True),
    Setting("attention", 3, answers=True),
)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "smollm2-135m"
    premises: str = "capitals"
    limit: int = 110
    """Facts that are tried, best known first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    random_sets: int = 20
    path_prompts: int = 8
    """Search prompts of the first seed on which exact path patching is run; 0 for none."""
    curve: bool = True
    """The gain-against-cost curve over modes, on the first seed's search part."""
    out: Path = RESULTS


def measure_seed(model: Any, split: Split, seed: int, options: Options) -> dict[str, Any]:
    """Effects on the search part, scores on the held-out part, for one seed."""
    found: dict[str, Any] = {"seed": seed, "n_subjects": len(split.held_out.facts)}
    encoded = encode_premises(model.tokenizer, split.search)
    asked = ask_all(model, split.held_out)
    effects = {}
    for site in SITES:
        begin = time.perf_counter()
        effects[site] = locate_heads(model, encoded, site=site, seed=seed)
        found[f"{site}_search_seconds"] = time.perf_counter() - begin
    for setting in SETTINGS:
        heads = effects[setting.site].select(count=setting.count)
        result = interp.evaluate(
            model, split.held_out, heads=Constraint(heads, setting.mode, setting.factor),
            random_sets=options.random_sets if setting.null else 0,
            answers=asked if setting.answers else False, seed=seed,
        )  # fmt: skip
        found[setting.key] = result.to_dict()
        report(setting, found[setting.key], seed)
    return found


def measure_once(model: Any, split: Split, seed: int, options: Options) -> dict[str, Any]:
    """What is measured for one seed: agreement with path patching, the control, the curve."""
    found: dict[str, Any] = {}
    encoded = encode_premises(model.tokenizer, split.search)
    if options.path_prompts:
        step = max(1, len(encoded) // options.path_prompts) | 1
        prompts = encoded.take(list(range(0, len(encoded), step))[: options.path_prompts])
        begin = time.perf_counter()
        path = locate_heads(model, prompts, method="path")
        found["path_seconds"] = time.perf_counter() - begin
        estimate = locate_heads(model, prompts, source="masked")
        found["path_agreement"] = agreement(estimate, path)
        found["path_top"], found["masked_attribution_top"] = (
            path.ranked()[:10],
            estimate.ranked()[:10],
        )
        control = locate_heads(model, prompts, method="path", kind="twin", source="twin")
        found["control_selected"] = len(control.select(fdr=0.05))
        found["control_largest"] = float(control.mean.abs().max())
    if options.curve:
        modes: dict[Site, Any] = {
            "output": [("zero", 0.0), ("mean", 0.0), ("resample", 0.0), ("scale", -1.0)],
            "attention": [("zero", 0.0), ("scale", 0.1)],
        }
        effects: dict[Site, HeadEffects] = {
            site: locate_heads(model, encoded, site=site, seed=seed) for site in SITES
        }
        table = compare_settings(model, encoded, effects, counts=(3, 8), modes=modes)
        found["settings"] = table.drop(columns="chosen").to_dict(orient="records")
    return found


def report(setting: Setting, evaluation: dict[str, Any], seed: int) -> None:
    """One line as soon as a setting is measured."""
    false = evaluation["splits"]["held_out"]["false_premise"]
    before, after = (false[run]["preference_accuracy"][0] for run in ("baseline", "constrained"))
    null = evaluation["random_null"].get("preference_accuracy", {}).get("mean")
    print(f"seed {seed} {setting.key}: {before:.3f} → {after:.3f}, random {null}", flush=True)


def markdown(results: dict[str, Any]) -> str:
    """The table over seeds, as docs/results.md shows it."""
    header = (
        "| site | mode | heads | no constraint | constrained | gain | random sets | "
        "P(true), twins | names true object |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = [(one, [seed[one.key] for seed in results["seeds"]]) for one in SETTINGS]
    return header + "".join(_row(setting, of_setting) for setting, of_setting in rows)


def _row(setting: Setting, rows: list[dict[str, Any]]) -> str:
    def over(kind: str, run: str, name: str) -> list[float]:
        measures = [row["splits"]["held_out"][kind][run][name] for row in rows]
        return [measure[0] for measure in measures if measure is not None]

    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.2f}" if values else "–"

    before = over("false_premise", "baseline", "preference_accuracy")
    after = over("false_premise", "constrained", "preference_accuracy")
    gains = [b - a for a, b in zip(before, after, strict=True)]
    nulls = [row["random_null"].get("preference_accuracy") for row in rows]
    spread = f"{min(gains):.2f} to {max(gains):.2f}"
    named = [
        mean(over("false_premise", run, "true_object_mention_rate"))
        for run in ("baseline", "constrained")
    ]
    twins = [
        mean(over("true_premise", run, "p_true_object")) for run in ("baseline", "constrained")
    ]
    cells = [
        setting.site, action_name(setting.mode, setting.factor), str(setting.count),
        mean(before), mean(after), f"{mean(gains)} ({spread})",
        mean([null["mean"] for null in nulls if null]), " → ".join(twins), " → ".join(named),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def main(options: Options) -> None:
    """Measure, print the table, write the JSON."""
    begin = time.perf_counter()
    model = interp.load_model(options.model)
    premises = interp.load_premises(options.premises, limit=options.limit)
    known = interp.filter_known(model, premises)
    results: dict[str, Any] = {
        "options": {"model": options.model, "premises": options.premises, "limit": options.limit,
                    "random_sets": options.random_sets,
                    "path_prompts": options.path_prompts},
        "known": len(known.facts),
        "versions": versions(),
        "seeds": [],
    }  # fmt: skip
    splits = {}
    for seed in options.seeds:
        seeded = interp.load_premises(options.premises, limit=options.limit, seed=seed)
        splits[seed] = seeded.with_facts(known.facts).split(seed=seed)

    def save() -> None:
        results["seconds"] = time.perf_counter() - begin
        results["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        options.out.parent.mkdir(exist_ok=True)
        write_json(options.out, json.loads(json.dumps(results)))

    for seed, split in splits.items():
        results["seeds"].append(measure_seed(model, split, seed, options))
        save()
    print(markdown(results), flush=True)
    seed, split = next(iter(splits.items()))
    results["once"] = measure_once(model, split, seed, options)
    save()
    for key in ("path_agreement", "path_seconds", "control_selected", "control_largest"):
        print(key, results["once"].get(key))
    print(f"wrote {options.out}; {results['seconds']:.0f} s, {results['peak_gib']:.1f} GiB")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
