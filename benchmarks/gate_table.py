"""The table of docs/gate.md: what helps against false premises, and what it costs on true ones.

For each seed, facts that the model knows are split by subject and template. The search part
chooses everything: FAITH's site and head count, the steering's layer, heads and strength, and the
detector. The held-out part, other subjects in other templates, is answered under every method.

    python benchmarks/gate_table.py --seeds 0 1 2

Writes benchmarks/results/gate_table.json, and the table and the checks into docs/gate.md. What the
search part of a seed gives is kept in --cache, if that is named, and read from there again.
"""

import json
import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gate_checks
import pandas as pd
import tyro
from marked import write_between

import interp
import probes
from interp.evaluation import compare_settings
from interp.evaluation.baselines.method_score import MethodScore, score
from interp.evaluation.baselines.methods import (
    Gated,
    Method,
    NoIntervention,
    RandomHeads,
    SystemPrompt,
)
from interp.evaluation.baselines.steering import Steering
from interp.evaluation.baselines.steering_directions import (
    choose_steering,
    head_directions,
    residual_steering,
)
from interp.evaluation.baselines.table import method_table, pool
from interp.evaluation.settings import best_setting
from interp.files.documents import write_json
from interp.heads import HeadEffects, Site, locate_heads
from interp.heads.effects import load_effects, save_effects
from interp.interventions import Constraint
from interp.premises import Premises, Split
from interp.premises.encode import encode_premises
from interp.runs.manifest import versions
from probes.detector.detections import Detector

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "gate_table.json"
PAGE = ROOT / "docs" / "gate.md"
SITES: tuple[Site, ...] = ("output", "attention")
NONE, SYSTEM, RANDOM = "none", "system prompt", "random heads"
OBJECT, ALL, ITI = "steering, known span", "steering, all tokens", "steering, heads (ITI)"
ORACLE, GATED = "FAITH, known span", "FAITH, gated by the probe"
BASELINES = (SYSTEM, OBJECT, ALL, ITI, RANDOM)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "smollm2-135m"
    premises: str = "capitals"
    limit: int = 110
    """Facts that are tried, best known first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    counts: tuple[int, ...] = (3, 8)
    """Head counts among which the search part chooses."""
    steering_facts: int = 8
    """Search facts on which the settings of steering are tried."""
    layers: tuple[int, ...] = (6, 12, 18, 24)
    strengths: tuple[float, ...] = (-4.0, -2.0, 2.0, 4.0)
    """Of steering the residual stream, in differences of means."""
    head_counts: tuple[int, ...] = (8, 24)
    deviations: tuple[float, ...] = (5.0, 10.0, 20.0)
    """Of steering heads, in standard deviations."""
    random_sets: int = 8
    max_new_tokens: int = 20
    held_out_facts: int | None = None
    """Only so many held-out facts, for a quick look."""
    checks: bool = True
    """On the first seed also the causal check, the uncertainty scores and the information flow."""
    cache: Path | None = None
    out: Path = RESULTS
    page: Path = PAGE


def search_effects(
    model: Any, search: Premises, seed: int, options: Options
) -> dict[Site, HeadEffects]:
    """Effects of all heads at both sites on the search part, from the cache if they are there."""
    name = f"{options.model}-{options.premises}-{options.limit}-{seed}.safetensors"
    path = None if options.cache is None else options.cache / name.replace("/", "-")
    if path is not None and path.is_file():
        return load_effects(path)  # type: ignore[return-value]
    encoded = encode_premises(model.tokenizer, search)
    effects = {site: locate_heads(model, encoded, site=site, seed=seed) for site in SITES}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_effects(path, list(effects.values()))
    return effects


def choose_constraint(
    model: Any, search: Premises, effects: dict[Site, HeadEffects], options: Options
) -> Constraint:
    """Site and head count of the most gain on the search part; of equals the least cost."""
    zero: dict[Site, Any] = {site: [("zero", 0.0)] for site in SITES}
    table = compare_settings(model, search, effects, counts=options.counts, modes=zero)
    row = table.loc[best_setting(table)]
    heads = effects[row["site"]].select(count=int(row["n_heads"]))
    return Constraint(heads)


def choose_steerings(model: Any, search: Premises, options: Options) -> dict[str, Steering]:
    """The three kinds of steering, each at its best on some of the search part's facts."""
    some = search.first(min(options.steering_facts, len(search.facts)))
    chosen: dict[str, Steering] = {}
    layers = [((layer, 0),) for layer in options.layers]
    residual = residual_steering(model, search)
    for name, place in ((OBJECT, "object"), (ALL, "all")):
        steering = Steering(residual.vectors, (), "resid_post", place)  # type: ignore[arg-type]
        chosen[name], _ = choose_steering(
            model, some, steering, sets=layers, strengths=options.strengths
        )
    directions = head_directions(model, search)
    sets = [directions.top(count) for count in options.head_counts]
    chosen[ITI], _ = choose_steering(
        model, some, directions.steering(options.head_counts[0]), sets=sets,
        strengths=options.deviations,
    )  # fmt: skip
    return chosen


def train_gate(model: Any, search: Premises, seed: int) -> Detector:
    """A detector that has seen the search part only."""
    return probes.train_detector(model, [search], known=False, seed=seed)


def held_out_part(split: Split, options: Options) -> Premises:
    held_out = split.held_out
    if options.held_out_facts is None:
        return held_out
    return held_out.first(min(options.held_out_facts, len(held_out.facts)))


def measure_seed(
    model: Any, split: Split, seed: int, options: Options
) -> tuple[list[MethodScore], dict[str, Any], Constraint]:
    """Every method on the held-out part, and what the search part chose."""
    times: dict[str, float] = {}

    def timed(name: str, begin: float) -> None:
        times[name] = time.perf_counter() - begin

    begin = time.perf_counter()
    effects = search_effects(model, split.search, seed, options)
    constraint = choose_constraint(model, split.search, effects, options)
    timed("choose heads", begin)
    begin = time.perf_counter()
    steerings = choose_steerings(model, split.search, options)
    timed("choose steering", begin)
    begin = time.perf_counter()
    detector = train_gate(model, split.search, seed)
    timed("train detector", begin)
    methods: dict[str, Method] = {
        NONE: NoIntervention(), SYSTEM: SystemPrompt(), **steerings,
        RANDOM: RandomHeads(constraint, options.random_sets, seed),
        ORACLE: constraint, GATED: Gated(constraint, detector),
    }  # fmt: skip
    held_out, scores = held_out_part(split, options), []
    for name, method in methods.items():
        begin = time.perf_counter()
        scores.append(
            score(
                model, held_out, method, name=name, answers=("twin",),
                baseline=scores[0] if scores else None, max_new_tokens=options.max_new_tokens,
            )
        )  # fmt: skip
        timed(name, begin)
        false, twin = scores[-1].false, scores[-1].twin
        print(
            f"seed {seed} {name}: preference {false.accuracy.mean():.3f}, twins "
            f"{twin.accuracy.mean():.3f}, P(true), twins {twin.p_true.mean():.3f}",
            flush=True,
        )
    found = {
        "seed": seed,
        "n_subjects": len(held_out.facts),
        "constraint": {"name": constraint.name, "heads": [list(h) for h in constraint.heads]},
        "steering": {
            name: {"units": [list(unit) for unit in one.units], "strength": one.strength,
                   "place": one.place}
            for name, one in steerings.items()
        },
        "detection": detection(model, held_out, scores[-1]),
        "seconds": times,
    }  # fmt: skip
    return scores, found, constraint


def detection(model: Any, premises: Premises, gated: MethodScore) -> dict[str, float]:
    """How often the gate fired, and how often its span covers the false object."""
    false, twin = gated.detections["false"], gated.detections["twin"]
    covers, fired = 0, 0
    for question, said in zip(premises.questions(), false, strict=True):
        start, end = premises.fill(question, "false").object
        if said.fired and said.char_span is not None:
            fired += 1
            covers += said.char_span[0] <= start and end <= said.char_span[1]
    return {
        "n": len(false),
        "fired_on_false": fired / len(false),
        "fired_on_twins": sum(one.fired for one in twin) / len(twin),
        "span_covers_object": covers / fired if fired else float("nan"),
    }


def verdicts(table: pd.DataFrame) -> dict[str, Any]:
    """What was to be shown, whether it was, and where a baseline is the better."""
    rows = {row["treatment"]: row for row in table.to_dict(orient="records")}
    gated = rows[GATED]
    found: dict[str, Any] = {
        "keeps 90 % of the gain at the known span": bool(gated["share"] >= 0.9),
        "costs at most 1 point of preference on twins": bool(gated["cost"] <= 0.01),
        "costs at most 0.02 of P(true object) on twins": bool(gated["cost_p_true"] <= 0.02),
        "97 % of the answers to twins unchanged": bool(gated["unchanged"] >= 0.97),
    }
    others = [rows[name] for name in BASELINES if name in rows]
    found["gains more than every baseline"] = all(gated["gain"] > other["gain"] for other in others)
    # A method that does nothing costs nothing, so its gain stands beside.
    found["where a baseline is better"] = [
        [other["treatment"], measure, other[measure], gated[measure], other["gain"]]
        for other in others
        for measure, sign in (("gain", 1), ("cost", -1), ("cost_p_true", -1), ("unchanged", 1))
        if sign * (other[measure] - gated[measure]) > 1e-4
    ]
    return found


def markdown(table: pd.DataFrame) -> str:
    """The table as docs/gate.md shows it."""
    lines = [
        "| method | gain, false premises | share of the gain at the known span | cost on twins, "
        "points | fall of P(true object), twins | twins' answers unchanged | seconds per question "
        "|\n|---|---|---|---|---|---|---|\n"
    ]
    for row in table.to_dict(orient="records"):
        cells = [str(row["treatment"])]
        for name, scale, digits in (
            ("gain", 1, 2), ("share", 1, 2), ("cost", 100, 1), ("cost_p_true", 1, 3),
            ("unchanged", 1, 2),
        ):  # fmt: skip
            value, low, high = (scale * row[f"{name}{end}"] for end in ("", "_low", "_high"))
            cells.append(f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        cells.append(f"{row['seconds']:.2f}")
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def section(results: dict[str, Any]) -> str:
    """What the script writes into docs/gate.md, between its marks."""
    options, seeds = results["options"], results["seeds"]
    table = pd.DataFrame(results["table"])
    shown = results["verdicts"]
    better = shown["where a baseline is better"]
    lines = [
        f"{options['model']}, relation {options['premises']}, {results['known']} known facts; "
        f"{seeds[0]['n_subjects']} held-out subjects in two held-out templates, "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}; {int(table['n'].iloc[0])} prompts "
        "of each kind. 95 % intervals from resampling subjects. "
        f"{results['seconds']:.0f} s, at most {results['peak_gib']:.1f} GiB.\n\n",
        markdown(table),
        "\nWhat the search part chose, and what the gate said of the held-out part:\n\n",
    ]
    for seed in seeds:
        said = seed["detection"]
        steering = "; ".join(
            f"{name}: {steering_text(one)}" for name, one in seed["steering"].items()
        )
        lines.append(
            f"- seed {seed['seed']}: FAITH {seed['constraint']['name']}; {steering}. The gate "
            f"fired on {said['fired_on_false']:.2f} of the false premises (its span covers the "
            f"false object in {said['span_covers_object']:.2f} of them) and on "
            f"{said['fired_on_twins']:.2f} of the twins.\n"
        )
    lines.append("\nWhat was to be shown:\n\n")
    for text, held in shown.items():
        if isinstance(held, bool):
            lines.append(f"- {text}: {'yes' if held else '**no**'}\n")
    for name, measure, theirs, own, gain in better:
        lines.append(
            f"- better than the gate: {name}, {measure} {theirs:.3f} against {own:.3f}, "
            f"at a gain of {gain:.2f}\n"
        )
    if not better:
        lines.append("- no baseline is better in any column\n")
    if "checks" in results:
        lines.append(gate_checks.markdown(results["checks"]))
    return "".join(lines)


def steering_text(one: dict[str, Any]) -> str:
    layers = sorted({layer for layer, _ in one["units"]})
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(one['units'])} heads"
    return f"{where}, strength {one['strength']:g}"


def tables(by_seed: Sequence[Sequence[MethodScore]]) -> list[dict[str, Any]]:
    """The rows over all seeds so far."""
    pooled = [pool([of_seed[index] for of_seed in by_seed]) for index in range(len(by_seed[0]))]
    table = method_table(pooled, baseline=NONE, oracle=ORACLE)
    return table.to_dict(orient="records")


def main(options: Options) -> None:
    """Measure, write the JSON and the page, print the table."""
    logging.getLogger("faithlens").setLevel(logging.INFO)
    begin = time.perf_counter()
    model = interp.load_model(options.model)
    known = interp.filter_known(model, interp.load_premises(options.premises, limit=options.limit))
    shown = {key: value for key, value in asdict(options).items() if not isinstance(value, Path)}
    results: dict[str, Any] = {
        "options": shown, "known": len(known.facts), "versions": versions(), "seeds": [],
    }  # fmt: skip
    by_seed: list[list[MethodScore]] = []

    def save() -> None:
        results["seconds"] = time.perf_counter() - begin
        results["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        options.out.parent.mkdir(exist_ok=True)
        write_json(options.out, json.loads(json.dumps(results, default=str)))

    for seed in options.seeds:
        premises = interp.load_premises(options.premises, limit=options.limit, seed=seed)
        split = premises.with_facts(known.facts).split(seed=seed)
        scores, found, constraint = measure_seed(model, split, seed, options)
        by_seed.append(scores)
        results["seeds"].append(found | {"table": tables([scores])})
        results["table"] = tables(by_seed)
        results["verdicts"] = verdicts(pd.DataFrame(results["table"]))
        save()
        if options.checks and seed == options.seeds[0]:
            checked = time.perf_counter()
            results["checks"] = gate_checks.run(model, split, constraint, seed=seed)
            results["checks"]["seconds"] = time.perf_counter() - checked
            save()
    write_between(options.page, "measured", section(results))
    print(section(results), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
