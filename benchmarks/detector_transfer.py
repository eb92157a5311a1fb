"""Does the premise detector work on relations, frames and questions that it was not trained on?

    python benchmarks/detector_transfer.py --tasks DIR

Each relation is left out in turn: the detector is trained on all others, which also choose its
threshold, and scored on the one left out, by relation and by the frame of the question. Ablations
train with a part of the evidence, and a curve shows how many training relations are needed. With
``--tasks``, a detector of all relations reads questions that other people asked, from
``DIR/NAME/train.jsonl`` or ``train.csv``: every detection there is a false alarm. Writes
benchmarks/results/detector_transfer.json and the table between the marks of docs/probes.md.
"""

import csv
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from detector import Options as KnownFacts
from detector import known_facts, line
from marked import write_between
from scipy.stats import binomtest

import interp
from interp.files.documents import write_json
from interp.premises import Premises
from interp.runs.manifest import versions
from probes.detector.dataset import DetectorDataset, Folds
from probes.detector.detections import Detection, PremiseDetections
from probes.detector.detector import PremiseDetector
from probes.detector.evidence import EXPECTATION, PROBES
from probes.detector.fit import cross_fit_layers, fit_detector
from probes.detector.rates import at_rates
from probes.detector.score import score_detections
from probes.detector.scored import TokenScores
from probes.detector.support_detector import AnyDetector
from probes.detector.train import collect_material
from probes.scoring import area_under_curve

HERE = Path(__file__).parent
EVIDENCE = {
    "probes": PROBES,
    "expectation": EXPECTATION,
    "falsity and expectation": ("falsity", *EXPECTATION),
    "all": (*PROBES, *EXPECTATION),
}
NO_MODEL = "0" * 64
"""Fingerprint of detectors that only read stored activations."""
HONEST = ("boolq", "ARC-Easy", "openbookqa", "gsm8k", "mawps-asdiv-a")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "smollm2-135m"
    relations: tuple[str, ...] = ()
    """By default all shipped relations whose false object is another fact's."""
    facts: int = 45
    """Facts of each relation that the model is asked about."""
    known: int = 24
    """Known facts of each relation that are used."""
    tasks: Path | None = None
    """Folder with questions that other people asked."""
    honest: int = 500
    """Questions of each set, evenly spaced."""
    steps: tuple[Literal["transfer", "curve", "honest"], ...] = ("transfer", "curve", "honest")
    """What is measured; results of the other steps are kept as ``out`` holds them."""
    subsets: int = 3
    """Random sets of training relations for each point of the curve."""
    seed: int = 0
    activations: Path | None = None
    """A directory that keeps activations and known facts for another run."""
    out: Path = HERE / "results" / "detector_transfer.json"
    page: Path | None = HERE.parent / "docs" / "probes.md"


def in_frames(premises: Premises) -> Premises | None:
    """The same facts in the relation's frames, if it has any."""
    frames = premises.relation.frames
    if not frames:
        return None
    relation = replace(
        premises.relation, templates=frames, search_templates=(frames[0].name,), frames=()
    )
    return replace(premises, relation=relation, templates=relation.template_names)


def material_of(model: Any, options: Options, folder: Path) -> DetectorDataset:
    """All questions of the relations, through templates and frames, and their activations."""
    of_facts = KnownFacts(facts=options.facts, seed=options.seed, activations=options.activations)
    known = [one.first(min(options.known, len(one.facts))) for one in known_facts(model, of_facts)]
    if options.relations:
        known = [one for one in known if one.relation.name in options.relations]
    framed = [frames for one in known if (frames := in_frames(one)) is not None]
    return collect_material(
        model, [*known, *framed], folder / "transfer", known=False, seed=options.seed
    )


def scores_of(material: DetectorDataset, detector: PremiseDetector) -> list[TokenScores]:
    """The probes' scores of all questions, from their stored activations."""
    values = torch.stack([material.read(layer) for layer in detector.read_layers], dim=1)
    predictions = material.read_predictions()
    read = None if predictions is None else torch.from_numpy(predictions)
    combined = detector.combined(values, read, material.sizes)
    return TokenScores.of_questions(combined, read, material.sizes)


def detections(material: DetectorDataset, detector: PremiseDetector) -> list[Detection]:
    """What the detector finds in the questions, from their stored activations."""
    return [
        detector.decide(question.asked, scores)
        for question, scores in zip(material.questions, scores_of(material, detector), strict=True)
    ]


def scored(material: DetectorDataset, found: Sequence[Detection]) -> dict[str, Any]:
    """Rates and AUC with intervals, and the AUC of each template and frame."""
    by_label = {
        label: [
            (detection, question)
            for detection, question in zip(found, material.questions, strict=True)
            if question.label == label
        ]
        for label in (1, 0)
    }
    pairs = PremiseDetections(
        false=tuple(detection for detection, _ in by_label[1]),
        twin=tuple(detection for detection, _ in by_label[0]),
        objects=tuple(question.object for _, question in by_label[1]),
        subjects=tuple(question.question.subject for _, question in by_label[1]),
    )
    result = score_detections(pairs).to_dict()
    result.pop("curve")
    frames: dict[str, list[tuple[float, int]]] = {}
    for detection, question in zip(found, material.questions, strict=True):
        row = (detection.probability, question.label)
        frames.setdefault(question.question.template, []).append(row)
    result["templates"] = {name: _auc(rows) for name, rows in frames.items()}
    return result


def _auc(rows: Sequence[tuple[float, int]]) -> dict[str, float]:
    probabilities, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    return {"n": len(rows), "auc": area_under_curve(probabilities.float(), labels)}


def leave_one_out(material: DetectorDataset, names: Sequence[str]) -> dict[str, Any]:
    """Each relation from a detector of all others, with all evidence and with parts of it."""
    found: dict[str, Any] = {"relations": {}, "ablation": {}, "frames": {}}
    frames: dict[str, list[tuple[float, int]]] = {}
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in EVIDENCE}
    for name in names:
        trained_on = material.of_relations([other for other in names if other != name])
        part = material.of_relations([name])
        fits = cross_fit_layers(trained_on, Folds.suited_to(trained_on.questions), progress=False)
        for kind, evidence in EVIDENCE.items():
            detector = fit_detector(trained_on, fingerprint=NO_MODEL, evidence=evidence, fits=fits)
            seen = detections(part, detector)
            row = {"layers": list(detector.read_layers), **scored(part, seen)}
            rows[kind].append(row)
            print(f"{kind}: not trained on {name}: {line(row)}", flush=True)
            if kind == "all":
                assert detector.combination is not None
                row["combination"] = detector.combination.to_dict()
                found["relations"][name] = row
                for detection, question in zip(seen, part.questions, strict=True):
                    pair = (detection.probability, question.label)
                    frames.setdefault(question.question.template, []).append(pair)
    for kind in EVIDENCE:
        found["ablation"][kind] = summary(rows[kind])
        print(kind, found["ablation"][kind], flush=True)
    found["frames"] = {
        name: _auc(pairs) for name, pairs in frames.items() if name.startswith("frame-")
    }
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over relations, with intervals from resampling relations."""
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {"n_relations": len(rows)}
    for key in ("auc", "fired_on_false", "fired_on_twins"):
        values = np.array([row[key][0] for row in rows])
        draws = generator.choice(values, (2000, len(values))).mean(axis=1)
        found[key] = [float(values.mean()), *map(float, np.quantile(draws, [0.025, 0.975]))]
    covered = [row["span_covers_object"] for row in rows if row["span_covers_object"] is not None]
    found["span_covers_object"] = float(np.mean([one[0] for one in covered])) if covered else None
    return found


def curve(material: DetectorDataset, names: Sequence[str], options: Options) -> list[dict]:
    """Recall on a left-out relation against the number of training relations."""
    generator, points = np.random.default_rng(options.seed), []
    for size in sorted({1, 2, 4, 6, 9, 12, 16, len(names) - 1}):
        if size >= len(names):
            continue
        rows = []
        for name in names:
            others = [other for other in names if other != name]
            for _ in range(options.subsets if size < len(others) else 1):
                chosen = list(generator.choice(others, size, replace=False))
                detector = fit_detector(
                    material.of_relations(chosen), fingerprint=NO_MODEL, progress=False
                )
                part = material.of_relations([name])
                rows.append(scored(part, detections(part, detector)))
        points.append({"training_relations": size, **summary(rows)})
        print(points[-1], flush=True)
    return points


def honest_questions(folder: Path, name: str) -> list[str]:
    """The questions of one set, each once, without the options of its answer."""
    table = folder / name / "train.csv"
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            texts = [_numbered(row) for row in csv.DictReader(file)]
    else:
        lines = (folder / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [_bare(json.loads(one)) for one in lines]
    return [text for text in dict.fromkeys(texts) if text]


def _bare(row: dict[str, Any]) -> str:
    if "question" in row:
        return row["question"].strip()
    return re.sub(r"^.*?question: ", "", row["instruction"], flags=re.S).split("\n\n")[0].strip()


def _numbered(row: dict[str, Any]) -> str:
    """A word problem with its numbers filled in."""
    text = row["Question"]
    for index, number in enumerate(row["Numbers"].split()):
        text = text.replace(f"number{index}", f"{float(number):g}")
    return text.strip()


def honest(
    model: Any, detector: AnyDetector, tasks: Path, most: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """How often the detector fires on questions of other people, by set, and in all."""
    total = [0, 0]
    for name in HONEST:
        texts = honest_questions(tasks, name)
        texts = texts[:: max(1, len(texts) // most)][:most]
        fired = sum(found.fired for found in detector.detect(model, texts, progress=False))
        total = [total[0] + len(texts), total[1] + fired]
        yield name, _share(len(texts), fired)
    yield "all", _share(*total)


def _share(n: int, fired: int) -> dict[str, Any]:
    interval = binomtest(fired, n).proportion_ci(method="exact")
    return {"n": n, "fired": fired, "share": [fired / n, interval.low, interval.high]}


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Everything, with the activations in ``folder``."""
    begin = time.perf_counter()
    model = interp.load_model(options.model)
    material = material_of(model, options, folder)
    names = list(dict.fromkeys(question.question.relation for question in material.questions))
    facts = {
        name: len({q.question.subject for q in material.of_relations([name]).questions})
        for name in names
    }
    print(facts, flush=True)
    results: dict[str, Any] = {}
    if options.out.is_file():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    results |= {
        "options": {"model": options.model, "facts": options.facts, "known": options.known},
        "known": facts,
        "versions": versions(),
    }
    if "transfer" in options.steps:
        results["leave_one_out"] = leave_one_out(material, names)
    if "curve" in options.steps:
        results["curve"] = curve(material, names, options)
    if "honest" in options.steps and options.tasks is not None:
        fingerprint = interp.models.fingerprint(model)
        detector = fit_detector(material, fingerprint=fingerprint, progress=False)
        results["training"] = {"layers": list(detector.read_layers), **detector.training}
        results["honest"] = {}
        for name, row in honest(model, detector, options.tasks, options.honest):
            results["honest"][name] = row
            print(name, row, flush=True)
    if "leave_one_out" in results:
        means = results["leave_one_out"]["ablation"]["all"]
        alarms = means["fired_on_twins"][0]
        if "honest" in results:
            alarms = results["honest"]["all"]["share"][0]
        rates = at_rates(means["fired_on_false"][0], alarms)
        results["rates"] = rates.table.to_dict("records")
    results["seconds"] = time.perf_counter() - begin
    return results


def page(results: dict[str, Any]) -> str:
    """The measured part of docs/probes.md."""
    out, lines = results["leave_one_out"], []
    for name, row in out["relations"].items():
        covers = row["span_covers_object"]
        lines.append(
            f"| {name} | {results['known'][name]} | {row['n']} | {_three(row['auc'])} | "
            f"{_three(row['fired_on_false'])} | {_three(row['fired_on_twins'])} | "
            f"{'–' if covers is None else f'{covers[0]:.2f}'} |\n"
        )
    parts = [
        f"| {kind} | {_three(row['auc'])} | {_three(row['fired_on_false'])} | "
        f"{_three(row['fired_on_twins'])} |\n"
        for kind, row in out["ablation"].items()
    ]
    frames = ", ".join(
        f"{name.removeprefix('frame-')} {row['auc']:.2f} (n = {row['n']})"
        for name, row in out["frames"].items()
    )
    points = "; ".join(
        f"{one['training_relations']}: {one['fired_on_false'][0]:.2f} "
        f"(AUC {one['auc'][0]:.2f}, twins {one['fired_on_twins'][0]:.3f})"
        for one in results.get("curve", [])
    )
    honest_rows = "".join(
        f"| {name} | {row['n']} | {row['fired']} | {_three(row['share'], 4)} |\n"
        for name, row in results.get("honest", {}).items()
    )
    rates = "".join(
        f"| {row['rate']:.0%} | {row['precision']:.2f} | {row['caught']:.1f} | "
        f"{row['alarms']:.1f} | {row['change']:+.1f} |\n"
        for row in results["rates"]
    )
    return f"""Made by `benchmarks/detector_transfer.py`. {results["options"]["model"]}, at most
{results["options"]["known"]} known facts of each relation. Each row: trained on all other
relations, which choose the threshold; intervals from resampling subjects, in the means from
resampling relations.

| relation | facts | questions | AUC | fires on false | on twins | span holds object |
|---|---|---|---|---|---|---|
{"".join(lines)}
| evidence | mean AUC | fires on false | on twins |
|---|---|---|---|
{"".join(parts)}
AUC by frame of the question, all left-out relations together: {frames}.

Training relations and mean recall on another one: {points or "not measured"}.

Questions of other people, each detection a false alarm:

| set | questions | fired | share |
|---|---|---|---|
{honest_rows}
At realistic rates of false premises, from the mean recall and the false alarms on other people's
questions (on twins, if none were asked); per 1,000 questions, if each detection on a false premise
gives one right answer and each false alarm costs one:

| rate | precision | caught | false alarms | change of right answers |
|---|---|---|---|---|
{rates}"""


def _three(values: Sequence[float], digits: int = 2) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in values)
    return f"{value} [{low}, {high}]"


def main(options: Options) -> None:
    """Measure, write the JSON, write the table."""
    with tempfile.TemporaryDirectory() as temporary:
        results = measure(options, options.activations or Path(temporary))
    write_json(options.out, results)
    if options.page is not None:
        write_between(options.page, "detector transfer", page(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
