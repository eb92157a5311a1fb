"""Does the support of a premise find false ones in relations that the detector has not seen?

    python benchmarks/support_transfer.py --work DIR --tasks TASKS

Each relation is left out in turn: the detector's probes, evidence and threshold, with and without
the support test, come from the others. The one left out is scored. Its held-out part is also
scored under the constraint of the heads that the others gave, told which words are false and gated
by this detector. With ``--tasks``, a detector of all relations reads questions of other people,
from ``TASKS/NAME``: every detection there is a false alarm. DIR is that of benchmarks/transfer.py,
which keeps what the model knows and every relation's effects; activations are kept there too.
Writes benchmarks/results/support_transfer.json and the table between the marks of docs/probes.md.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer
import tyro
from detector_transfer import detections, honest, scored, scores_of, summary
from marked import write_between
from ship import well_known

import interp
from interp.files.documents import write_json
from interp.heads import HeadSet, JointEffects
from interp.premises import Premises
from interp.runs.manifest import versions
from probes.detector.dataset import DetectorDataset, Folds
from probes.detector.detections import Detection, PremiseDetections
from probes.detector.detector import PremiseDetector
from probes.detector.evidence import EXPECTATION, PROBES
from probes.detector.fit import combine, cross_fit_layers, fit_detector
from probes.detector.pair import Pair
from probes.detector.questions import AskedQuestion
from probes.detector.support import Contrast, contrast, supports
from probes.detector.support_detector import SupportDetector
from probes.detector.support_fit import fit_support
from probes.detector.train import collect_material
from probes.scoring import area_under_curve

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "support_transfer.json"
PAGE = HERE.parent / "docs" / "probes.md"
KINDS = ("probes", "support")
GATED_HEAD = (
    "| relation | n | no constraint | told | gated | fall on twins, points, gated "
    "| fall of P(true object), twins, gated |\n" + "|---" * 7 + "|"
)
MEASURES = ("none", "told", "gated", "twins_points", "fall_p_true")
TRAINED = (*PROBES, *EXPECTATION)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options(transfer.Options):
    """The options of benchmarks/transfer.py, and what is measured."""

    n_questions: int = 2000
    """Questions, false and true, that are aimed at."""
    draw: int = 1
    """Seed of the false objects."""
    tasks: Path | None = None
    """Folder with questions that other people asked."""
    honest: int = 420
    """Questions of each set, evenly spaced."""
    n_heads: int = 8
    """Heads of the constraint that the detector gates."""


class Contrasts:
    """`contrast` by prompt and pair: each is run once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kept: dict[tuple[tuple[int, ...], Pair], tuple[float, float]] = {}

    def read(self, asked: Sequence[AskedQuestion], pairs: Sequence[Pair]) -> Contrast:
        """As `contrast` reads them."""
        wanted = list(zip(asked, pairs, strict=True))
        missing = [(q, pair) for q, pair in wanted if (q.tokens, pair) not in self.kept]
        if missing:
            found = contrast(self.model, *map(list, zip(*missing, strict=True)), progress=False)
            for (question, pair), row in zip(missing, found.rows(), strict=True):
                self.kept[question.tokens, pair] = row
        rows = [self.kept[question.tokens, pair] for question, pair in wanted]
        return Contrast(*np.array(rows).reshape(len(rows), 2).T)


def tested(
    material: DetectorDataset, detector: SupportDetector, contrasts: Contrasts
) -> list[Detection]:
    """What the detector finds, from stored activations and what `Contrasts` keeps."""
    scores = scores_of(material, detector.probes)
    asked = [question.asked for question in material.questions]
    suspicions = detector.suspects(asked, scores)
    return detector.decisions(suspicions, asked, scores, read=contrasts.read)


def known_supports(
    material: DetectorDataset, detector: PremiseDetector, contrasts: Contrasts
) -> np.ndarray:
    """The support between the known subject and object of every question."""
    asked = [question.asked for question in material.questions]
    pairs = [
        Pair(*sorted((part.asked.tokens_at(part.subject), part.asked.tokens_at(part.object))))
        for part in material.questions
    ]
    found = supports(scores_of(material, detector), asked, pairs, contrasts.read(asked, pairs))
    return found[:, 0]


def gated(
    model: Any, held_out: Premises, heads: HeadSet, detector: SupportDetector | PremiseDetections
) -> dict[str, Any]:
    """Preference on a relation's held-out part: no constraint, told where, and gated."""
    scores = {
        gate: interp.evaluate(
            model,
            held_out,
            heads=heads,
            gate=gate,
            detector=detector if gate == "probe" else None,
            random_sets=0,
            answers=False,
            progress=False,
        )
        for gate in ("oracle", "probe")
    }
    told, by_gate = scores["oracle"], scores["probe"]
    twins = by_gate.twin.accuracy
    return {
        "n": len(held_out),
        "none": float(told.false.accuracy[0]),
        "told": float(told.false.accuracy[1]),
        "gated": float(by_gate.false.accuracy[1]),
        "twins_points": 100 * float(twins[0] - twins[1]),
        "fall_p_true": by_gate.cost,
    }


def leave_one_out(
    model: Any,
    material: DetectorDataset,
    premises: dict[str, Premises],
    joint: JointEffects,
    options: Options,
    contrasts: Contrasts,
) -> dict[str, Any]:
    """Each relation from detectors of all others, without and with the support test."""
    names, fingerprint = list(premises), interp.models.fingerprint(model)
    rows: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    counted = [question for question in material.questions if question.counts]
    kept = DetectorDataset(
        tuple(counted),
        material.store,
        prompts=tuple(np.flatnonzero(material.counted).tolist()),
    )
    alone: list[float] = []
    for name in names:
        others = material.of_relations([other for other in names if other != name])
        part = kept.of_relations([name])
        fits = cross_fit_layers(others, Folds.suited_to(others.questions), progress=False)
        probes = fit_detector(others, fingerprint=fingerprint, fits=fits, progress=False)
        scores = combine(others, fits[0], TRAINED)
        detector = fit_support(others, probes, scores=scores, read=contrasts.read)
        rows["probes"][name] = scored(part, detections(part, probes))
        rows["support"][name] = scored(part, tested(part, detector, contrasts))
        rows["support"][name]["fitted"] = {
            **detector.training,
            **{"weights": list(detector.weights), "threshold": detector.threshold},
        }
        values, labels = known_supports(part, probes, contrasts), torch.from_numpy(part.labels)
        alone.append(area_under_curve(torch.from_numpy(-values).float(), labels))
        rows["support"][name]["alone"] = alone[-1]
        heads = joint.without(name).select(count=options.n_heads)
        held_out = premises[name].split(seed=options.seed).held_out
        rows["support"][name]["gated"] = gated(model, held_out, heads, detector)
        logger.info("%s", rows["support"][name]["gated"])
        for kind in KINDS:
            row = rows[kind][name]
            shown = {key: row[key][0] for key in ("auc", "fired_on_false", "fired_on_twins")}
            logger.info("%s, %s: %s", name, kind, shown)
    means = {kind: summary(list(rows[kind].values())) for kind in KINDS}
    return {"relations": rows, "means": means, "alone": float(np.mean(alone))}


def measure(options: Options) -> dict[str, Any]:
    begin = time.perf_counter()
    model = interp.load_model(options.model)
    premises, effects, n_known = transfer.searched(model, options)
    fitted = well_known(premises, n_known, options)
    material = collect_material(
        model,
        list(fitted.values()),
        options.work / "detector-activations",
        known=False,
        n_questions=options.n_questions,
        seed=options.draw,
        progress=False,
    )
    logger.info("%d questions, %.0f s", len(material.questions), time.perf_counter() - begin)
    contrasts = Contrasts(model)
    results: dict[str, Any] = {"model": options.model, "versions": versions()}
    results["leave_one_out"] = leave_one_out(
        model, material, fitted, JointEffects(effects), options, contrasts
    )
    write_json(RESULTS, results)
    if options.tasks is not None:
        fits = cross_fit_layers(material, Folds.suited_to(material.questions), progress=False)
        fingerprint = interp.models.fingerprint(model)
        probes = fit_detector(material, fingerprint=fingerprint, fits=fits, progress=False)
        scores = combine(material, fits[0], TRAINED)
        detector = fit_support(material, probes, scores=scores, read=contrasts.read)
        results["honest"] = {}
        for name, row in honest(model, detector, options.tasks, options.honest):
            results["honest"][name] = row
            logger.info("%s: %s", name, row)
    results["seconds"] = time.perf_counter() - begin
    return results


def page(results: dict[str, Any]) -> str:
    """The measured part of the page."""
    rows, means = (results["leave_one_out"][key] for key in ("relations", "means"))
    lines = "".join(
        f"| {name} | {row['n']} | {rows['probes'][name]['auc'][0]:.2f} | {row['auc'][0]:.2f} | "
        f"{row['alone']:.2f} | {_three(rows['probes'][name]['fired_on_false'])} | "
        f"{_three(row['fired_on_false'])} | {rows['probes'][name]['fired_on_twins'][0]:.3f} | "
        f"{row['fired_on_twins'][0]:.3f} |\n"
        for name, row in rows["support"].items()
    )
    of_probes, of_support = means["probes"], means["support"]
    lines += (
        f"| mean | | {_three(of_probes['auc'])} | {_three(of_support['auc'])} | "
        f"{results['leave_one_out']['alone']:.2f} | {_three(of_probes['fired_on_false'])} | "
        f"{_three(of_support['fired_on_false'])} | {_three(of_probes['fired_on_twins'], 3)} | "
        f"{_three(of_support['fired_on_twins'], 3)} |\n"
    )
    tests = [row["fitted"] for row in rows["support"].values()]
    of_tests = {
        key: np.mean([part[f"tested_{key}"] for part in tests])
        for key in ("false", "twins", "background")
    }
    gates = {name: row["gated"] for name, row in rows["support"].items()}
    of_gates = "".join(
        f"| {name} | {row['n']} | {row['none']:.2f} | {row['told']:.2f} | {row['gated']:.2f} | "
        f"{row['twins_points']:.1f} | {row['fall_p_true']:.3f} |\n"
        for name, row in gates.items()
    )
    of_all = {key: np.mean([row[key] for row in gates.values()]) for key in MEASURES}
    of_gates += (
        f"| mean | | {of_all['none']:.2f} | {of_all['told']:.2f} | {of_all['gated']:.2f} | "
        f"{of_all['twins_points']:.1f} | {of_all['fall_p_true']:.3f} |\n"
    )
    share = (of_all["gated"] - of_all["none"]) / (of_all["told"] - of_all["none"])
    honest_part = ""
    if "honest" in results:
        *sets, (_, of_all_sets) = results["honest"].items()
        by_set = ", ".join(f"{name} {row['fired']} of {row['n']}" for name, row in sets)
        honest_part = (
            "\nQuestions of other people, each detection a false alarm: "
            f"{of_all_sets['fired']} of {of_all_sets['n']}, {_three(of_all_sets['share'], 4)} "
            f"({by_set}).\n"
        )
    columns = "AUC, probes|AUC, with support|AUC, support alone|recall, probes|"
    columns += "recall, with support|twins, probes|twins, with support"
    head = f"| relation | questions | {' | '.join(columns.split('|'))} |\n" + "|---" * 9 + "|"
    return f"""Made by `benchmarks/support_transfer.py`. {results["model"]}; probes, weights and
threshold from all other relations. 95 % intervals from resampling subjects, in the means from
resampling relations.

{head}
{lines}
The support is tested in {of_tests["false"]:.2f} of false premises, {of_tests["twins"]:.2f} of
twins, {of_tests["background"]:.2f} of texts without a premise.
{honest_part}
The constraint, the best heads of all other relations, told which words are false and gated by the
detector of all others, on the held-out part of each relation:

{GATED_HEAD}
{of_gates}
{share:.2f} of the gain told where is kept by the gate, over all relations.
"""


def _three(values: Sequence[float], digits: int = 2) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in values)
    return f"{value} [{low}, {high}]"


def main(options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = measure(options)
    write_json(RESULTS, results)
    write_between(PAGE, "support transfer", page(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
