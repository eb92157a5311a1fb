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
from interp.evaluation.settings import compare_settings
from interp.heads import Site, agreement, locate_heads
from interp.premises import Split
from interp.premises.encode import encode_premises
from interp.runs.manifest import versions
from interp.runs.store import write_json

RESULTS = Path(__file__).parent / "results" / "faith_table.json"
SITES: tuple[Site, ...] = ("output", "attention")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "smollm2-135m"
    premises: str = "capitals"
    limit: int = 110
    """Facts that are tried, best known first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    counts: tuple[int, ...] = (3, 8)
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
    asked = interp.evaluation.evaluate.ask_all(model, split.held_out)
    effects = {}
    for site in SITES:
        begin = time.perf_counter()
        effects[site] = locate_heads(model, encoded, site=site, seed=seed)
        found[f"{site}_search_seconds"] = time.perf_counter() - begin
        for count in options.counts:
            heads = effects[site].select(count=count)
            answers = asked if count == max(options.counts) or site == "attention" else False
            result = interp.evaluate(
                model, split.held_out, heads=heads, random_sets=options.random_sets,
                answers=answers, seed=seed,
            )  # fmt: skip
            found[f"{site}_{count}"] = result.to_dict()
            report(found[f"{site}_{count}"], seed)
    if seed == options.seeds[0]:
        found |= first_seed(model, split, encoded, effects, options)
    return found


def first_seed(
    model: Any, split: Split, encoded: Any, effects: dict[Site, Any], options: Options
) -> dict[str, Any]:
    """What is measured once: agreement with path patching, the control, the curve."""
    found: dict[str, Any] = {}
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
        found["zero_attribution_agreement"] = agreement(effects["output"], path)
        control = locate_heads(model, prompts, method="path", kind="twin", source="twin")
        found["control_selected"] = len(control.select(fdr=0.05))
        found["control_largest"] = float(control.mean.abs().max())
    if options.curve:
        modes: dict[Site, Any] = {
            "output": [("zero", 0.0), ("mean", 0.0), ("resample", 0.0), ("scale", -1.0)],
            "attention": [("zero", 0.0), ("scale", 0.1)],
        }
        table = compare_settings(model, encoded, effects, counts=(3, 8), modes=modes)
        found["settings"] = table.drop(columns="chosen").to_dict(orient="records")
    return found


def report(evaluation: dict[str, Any], seed: int) -> None:
    """One line as soon as a setting is measured."""
    false = evaluation["splits"]["held_out"]["false_premise"]
    accuracy = [false[run]["preference_accuracy"][0] for run in ("baseline", "constrained")]
    print(
        f"seed {seed} {evaluation['site']} {evaluation['n_heads']}: "
        f"{accuracy[0]:.2f} → {accuracy[1]:.2f}, "
        f"random {evaluation['random_null']['preference_accuracy']['mean']:.2f}",
        flush=True,
    )


def markdown(results: dict[str, Any]) -> str:
    """The table over seeds, as docs/results.md shows it."""
    header = (
        "| site | heads | no constraint | constrained | gain | random sets | P(true), twins | "
        "names true object |\n|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for site in SITES:
        for count in results["options"]["counts"]:
            rows = [seed[f"{site}_{count}"] for seed in results["seeds"]]
            lines.append(_row(site, count, rows))
    return header + "".join(lines)


def _row(site: str, count: int, rows: list[dict[str, Any]]) -> str:
    def over(kind: str, run: str, name: str) -> list[float]:
        measures = [row["splits"]["held_out"][kind][run][name] for row in rows]
        return [measure[0] for measure in measures if measure is not None]

    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.2f}" if values else "–"

    before = over("false_premise", "baseline", "preference_accuracy")
    after = over("false_premise", "constrained", "preference_accuracy")
    gains = [b - a for a, b in zip(before, after, strict=True)]
    null = [row["random_null"]["preference_accuracy"]["mean"] for row in rows]
    spread = f"{min(gains):.2f} to {max(gains):.2f}"
    named = [
        mean(over("false_premise", run, "true_object_mention_rate"))
        for run in ("baseline", "constrained")
    ]
    twins = [
        mean(over("true_premise", run, "p_true_object")) for run in ("baseline", "constrained")
    ]
    cells = [
        site, str(count), mean(before), mean(after), f"{mean(gains)} ({spread})", mean(null),
        " → ".join(twins), " → ".join(named),
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
                    "counts": options.counts, "random_sets": options.random_sets,
                    "path_prompts": options.path_prompts},
        "known": len(known.facts),
        "versions": versions(),
        "seeds": [],
    }  # fmt: skip
    for seed in options.seeds:
        seeded = interp.load_premises(options.premises, limit=options.limit, seed=seed)
        split = seeded.with_facts(known.facts).split(seed=seed)
        results["seeds"].append(measure_seed(model, split, seed, options))
        results["seconds"] = time.perf_counter() - begin
        results["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        options.out.parent.mkdir(exist_ok=True)
        write_json(options.out, json.loads(json.dumps(results)))
    print(markdown(results))
    first = results["seeds"][0]
    for key in ("path_agreement", "path_seconds", "control_selected", "control_largest"):
        if key in first:
            print(key, first[key])
    print(f"wrote {options.out}; {results['seconds']:.0f} s, {results['peak_gib']:.1f} GiB")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
