"""What the premise detector does on questions that it never saw, and the table of docs/probes.md.

    python benchmarks/detector.py

Facts that the model knows are split by subject and by template. Two protocols:

* *held out*: trained on the search part of all shipped relations, scored on the held-out part
  (other subjects, other templates) of each;
* *other relation*: trained on all questions of the other relations, scored on all of one.

Everything that is chosen (layer, calibration, threshold) is chosen by cross-validation within what
is trained on. Controls of the probe behind it are those of `interp probe`. Ordinary questions
without any of the relations are the last test. Writes benchmarks/results/detector.json, and the
table between the marks of docs/probes.md.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from marked import write_between

import interp
from interp.files.documents import write_json
from interp.premises import Premises
from interp.runs.manifest import versions
from probes import compare_with_controls, score_detector, train_detector
from probes.detector.fit import fit_detector
from probes.detector.train import FACTS, collect_material, known_premises, shipped_premises

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "detector.json"
PAGE = HERE.parent / "docs" / "probes.md"


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "smollm2-135m"
    facts: int = FACTS
    """Facts of each relation that the model is asked about."""
    seed: int = 0
    controls: str = "capitals"
    """The relation whose probe is set beside its controls."""
    activations: Path | None = None
    """A directory that keeps activations and known facts for another run."""
    out: Path = RESULTS
    page: Path = PAGE


def known_facts(model: Any, options: Options) -> list[Premises]:
    """The facts that the model knows; kept beside the activations, where these are kept."""
    shipped = shipped_premises(facts=options.facts, seed=options.seed)
    kept = None if options.activations is None else options.activations / "known.json"
    if kept is not None and kept.is_file():
        subjects = json.loads(kept.read_text(encoding="utf-8"))
        return [
            one.with_facts(fact for fact in one.facts if fact.subject in subjects[name])
            for one in shipped
            if (name := one.relation.name) in subjects
        ]
    known = known_premises(model, shipped)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {one.relation.name: list(one.subjects) for one in known})
    return list(known)


def main(options: Options) -> None:
    """Measure, write the JSON, write the table."""
    with tempfile.TemporaryDirectory() as temporary:
        results = measure(options, options.activations or Path(temporary))
    write_json(options.out, results)
    write_between(options.page, "detector", page(results))


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Everything, with the activations in ``folder``."""
    begin = time.perf_counter()
    model = interp.load_model(options.model)
    known = known_facts(model, options)
    splits = {one.relation.name: one.split(seed=options.seed) for one in known}
    results: dict[str, Any] = {
        "options": {"model": options.model, "facts": options.facts, "seed": options.seed},
        "known": {one.relation.name: len(one.facts) for one in known},
        "versions": versions(),
    }

    folder = (options.activations or Path(tempfile.mkdtemp())).joinpath
    start = time.perf_counter()
    detector = train_detector(
        model,
        [split.search for split in splits.values()],
        known=False,
        activations=folder / "search",
        seed=options.seed,
    )
    results["training_seconds"] = time.perf_counter() - start
    results["training"] = {"layer": detector.layer, **detector.training}
    results["held_out"] = {}
    for name, split in splits.items():
        score = score_detector(model, split.held_out, detector)
        results["held_out"][name] = score.to_dict()
        print(f"held out {name}: {line(score.to_dict())}", flush=True)
    results["ordinary"] = ordinary(model, detector)
    print(f"ordinary questions: {results['ordinary']}", flush=True)

    results["other_relation"] = {}
    material = collect_material(model, known, folder / "all", known=False, seed=options.seed)
    for tested in known:
        name = tested.relation.name
        trained = fit_detector(
            material.of_relations([other for other in splits if other != name]),
            fingerprint=detector.fingerprint,
            seed=options.seed,
        )
        score = score_detector(model, tested, trained)
        results["other_relation"][name] = {"layer": trained.layer, **score.to_dict()}
        print(f"not trained on {name}: {line(score.to_dict())}", flush=True)

    split = splits[options.controls]
    layer = detector.layer
    report = compare_with_controls(model, split.search, split.held_out, layer=layer)
    results["controls"] = {
        "relation": options.controls,
        "layer": layer,
        "beats_controls": report.beats_controls,
        "sentence": report.sentence,
        "control_task_auc": report.control_task_auc,
        "selectivity": report.selectivity,
        "scores": report.to_dataframe().to_dict("records"),
    }
    print(report.sentence, flush=True)
    results["seconds"] = time.perf_counter() - begin
    return results


def ordinary(model: Any, detector: Any) -> dict[str, Any]:
    """How often the detector fires on questions in which none of the relations is presupposed."""
    path = HERE.parent / "data" / "tasks" / "arithmetic" / "test.jsonl"
    sums = [json.loads(one)["prompt"] for one in path.read_text(encoding="utf-8").splitlines()]
    neutral = (HERE.parent / "data" / "neutral.txt").read_text(encoding="utf-8").splitlines()
    direct = [one.direct(fact) for one in shipped_premises(facts=20) for fact in one.facts]
    kinds = {
        "word problems": sums[:100],
        "neutral sentences": [one for one in neutral if one.strip()],
        "open questions about the facts": direct,
    }
    return {
        kind: {"n": len(texts), "fired": sum(one.fired for one in detector.detect(model, texts))}
        for kind, texts in kinds.items()
    }


def line(score: dict[str, Any]) -> str:
    """A score in one line."""
    covers = score["span_covers_object"]
    shown = "–" if covers is None else f"{covers[0]:.3f}"
    return (
        f"AUC {score['auc'][0]:.3f}, fires on false {score['fired_on_false'][0]:.3f}, on twins "
        f"{score['fired_on_twins'][0]:.3f}, span covers {shown}, "
        f"ECE {score['calibration_error']:.3f}"
    )


def table(results: dict[str, Any], key: str) -> str:
    """One protocol's rows in Markdown."""
    lines = [
        "| relation | known facts | questions | AUC | fires on false | on twins | "
        "span holds object | ECE |\n|---|---|---|---|---|---|---|---|\n"
    ]
    for name, one in results[key].items():
        low, high = one["auc"][1:]
        covers = one["span_covers_object"]
        lines.append(
            f"| {name} | {results['known'][name]} | {one['n']} | {one['auc'][0]:.3f} "
            f"[{low:.3f}, {high:.3f}] | {one['fired_on_false'][0]:.2f} | "
            f"{one['fired_on_twins'][0]:.3f} | {'–' if covers is None else f'{covers[0]:.2f}'} | "
            f"{one['calibration_error']:.3f} |\n"
        )
    return "".join(lines)


def page(results: dict[str, Any]) -> str:
    """The measured part of docs/probes.md."""
    training, controls = results["training"], results["controls"]
    rows = "".join(
        f"| {one['name']} | {one['auc']:.3f} [{one['ci_low']:.3f}, {one['ci_high']:.3f}] |\n"
        for one in controls["scores"]
    )
    fired = ", ".join(
        f"{one['fired']} of {one['n']} {kind}" for kind, one in results["ordinary"].items()
    )
    return f"""Made by `benchmarks/detector.py`; intervals in `benchmarks/results/detector.json`.
{results["options"]["model"]}, the first {results["options"]["facts"]} facts of each relation, those
that the model knows.

**Held-out subjects and templates** (trained on the search part of all relations; layer
{training["layer"]}, chosen by cross-validation):

{table(results, "held_out")}
**A relation that it was not trained on** (trained on all the others):

{table(results, "other_relation")}
**Questions without such a premise**: it fires on {fired}.

**Controls**, {controls["relation"]}, layer {controls["layer"]}, at the object's last token, AUC on
held-out subjects and templates:

| | AUC |
|---|---|
{rows}
{controls["sentence"]} Control task: AUC {controls["control_task_auc"]:.3f}; selectivity
{controls["selectivity"]:+.3f}."""


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
