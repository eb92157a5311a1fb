"""Does the echo find false premises in relations that neither probes nor heads have seen?

    python benchmarks/echo_transfer.py --work DIR --tasks TASKS

Each relation is left out in turn: the detector's probes, evidence and threshold, with and without
the echo, come from the others, and so do the heads that the echo cuts. The one left out is scored.
With ``--tasks``, a detector of all relations reads questions that other people asked, from
``TASKS/NAME``: every detection there is a false alarm. DIR is that of benchmarks/transfer.py, which
keeps what the model knows and every relation's effects; activations and echoes are kept there too.
Writes benchmarks/results/echo_transfer.json and the table between the marks of docs/probes.md.
"""

import json
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
from detector_transfer import HONEST, detections, honest_questions, scored, summary
from marked import write_between
from scipy.stats import binomtest
from ship import well_known

import interp
from interp.files.documents import write_json
from interp.forward.batch import Span
from interp.heads import HeadSet, JointEffects
from interp.runs.manifest import versions
from probes.detector.dataset import DetectorDataset, Folds
from probes.detector.detections import Detection
from probes.detector.echo import echo_log_odds
from probes.detector.echo_detector import EchoDetector
from probes.detector.echo_fit import fit_echo
from probes.detector.evidence import EXPECTATION, PROBES
from probes.detector.fit import combine, cross_fit_layers, fit_detector
from probes.detector.questions import AskedQuestion
from probes.detector.scored import TokenScores
from probes.detector.train import collect_material
from probes.scoring import area_under_curve

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "echo_transfer.json"
PAGE = HERE.parent / "docs" / "probes.md"
KINDS = ("probes", "echo")
TRAINED = (*PROBES, *EXPECTATION)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options(transfer.Options):
    """The options of benchmarks/transfer.py, and what is measured."""

    n_heads: int = 8
    """Heads that the echo cuts."""
    n_questions: int = 2000
    """Questions, false and true, that are aimed at."""
    draw: int = 1
    """Seed of the false objects."""
    tasks: Path | None = None
    """Folder with questions that other people asked."""
    honest: int = 420
    """Questions of each set, evenly spaced."""


class Echoes:
    """Echoes by prompt and words, kept in a file; each under heads found without its relation."""

    def __init__(self, model: Any, material: DetectorDataset, heads: dict[str, HeadSet]) -> None:
        self.model, self.heads = model, heads
        self.relation = {q.asked.tokens: q.question.relation for q in material.questions}
        self.kept: dict[tuple[tuple[int, ...], Span], np.ndarray] = {}

    def read(self, asked: Sequence[AskedQuestion], spans: Sequence[Span]) -> np.ndarray:
        """As `echo_log_odds` reads them; what is kept is not run again."""
        wanted = list(zip(asked, spans, strict=True))
        missing: dict[str, list[tuple[AskedQuestion, Span]]] = {}
        for question, span in wanted:
            if (question.tokens, span) not in self.kept:
                name = self.relation.get(question.tokens, next(iter(self.heads)))
                missing.setdefault(name, []).append((question, span))
        for name, pairs in missing.items():
            values = echo_log_odds(
                self.model, *zip(*pairs, strict=True), heads=self.heads[name], progress=False
            )
            for (question, span), value in zip(pairs, values, strict=True):
                self.kept[question.tokens, span] = value
        return np.array([self.kept[q.tokens, span] for q, span in wanted]).reshape(-1, 2)


def tested(material: DetectorDataset, detector: EchoDetector, echoes: Echoes) -> list[Detection]:
    """What the detector finds, from stored activations and echoes."""
    probes = detector.probes
    values = torch.stack([material.read(layer) for layer in probes.read_layers], dim=1)
    predictions = material.read_predictions()
    read = None if predictions is None else torch.from_numpy(predictions)
    parts = probes.combined(values, read, material.sizes).split(material.sizes)
    scores = [TokenScores(part[:, 0].numpy(), part[:, 1].numpy()) for part in parts]
    found = detector.suspects([question.asked for question in material.questions], scores)
    spans = {index: part.token_span for index, part in enumerate(found) if part.token_span}
    values = echoes.read([material.questions[i].asked for i in spans], list(spans.values()))
    for index, value in zip(spans, values, strict=True):
        found[index] = detector.decide(found[index], scores[index].question, value)
    return found


def leave_one_out(
    material: DetectorDataset, names: Sequence[str], echoes: Echoes
) -> dict[str, Any]:
    """Each relation from detectors of all others, without and with the echo."""
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
        probes = fit_detector(others, fingerprint="0" * 64, fits=fits, progress=False)
        scores = combine(others, fits[0], TRAINED)
        detector = fit_echo(
            others, probes, scores=scores, heads=echoes.heads[name], read=echoes.read
        )
        rows["probes"][name] = scored(part, detections(part, probes))
        rows["echo"][name] = scored(part, tested(part, detector, echoes))
        rows["echo"][name]["fitted"] = {
            **detector.training,
            **{"weights": list(detector.weights), "threshold": detector.threshold},
        }
        objects = [question.asked.tokens_at(question.object) for question in part.questions]
        falls = echoes.read([question.asked for question in part.questions], objects)
        labels = torch.from_numpy(part.labels)
        alone.append(area_under_curve(torch.from_numpy(falls[:, 0] - falls[:, 1]).float(), labels))
        rows["echo"][name]["alone"] = alone[-1]
        for kind in KINDS:
            row = rows[kind][name]
            shown = {key: row[key][0] for key in ("auc", "fired_on_false", "fired_on_twins")}
            logger.info("%s, %s: %s", name, kind, shown)
    means = {kind: summary(list(rows[kind].values())) for kind in KINDS}
    return {"relations": rows, "means": means, "alone": float(np.mean(alone))}


def honest(model: Any, detector: EchoDetector, options: Options) -> dict[str, Any]:
    """Detections on questions that other people asked, by set and in all."""
    assert options.tasks is not None
    found: dict[str, Any] = {}
    total = [0, 0]
    for name in HONEST:
        texts = honest_questions(options.tasks, name)
        texts = texts[:: max(1, len(texts) // options.honest)][: options.honest]
        fired = sum(part.fired for part in detector.detect(model, texts, progress=False))
        total = [total[0] + len(texts), total[1] + fired]
        found[name] = [len(texts), fired]
        logger.info("%s: %d of %d", name, fired, len(texts))
    interval = binomtest(total[1], total[0]).proportion_ci(method="exact")
    found["all"] = [*total, total[1] / total[0], interval.low, interval.high]
    return found


def measure(options: Options) -> dict[str, Any]:
    begin = time.perf_counter()
    model = interp.load_model(options.model)
    premises, effects, n_known = transfer.searched(model, options)
    fitted = well_known(premises, n_known, options)
    joint, names = JointEffects(effects), list(fitted)
    heads = {name: joint.without(name).select(count=options.n_heads) for name in names}
    material = collect_material(
        model,
        list(fitted.values()),
        options.work / "echo-activations",
        known=False,
        n_questions=options.n_questions,
        seed=options.draw,
        progress=False,
    )
    logger.info("%d questions, %.0f s", len(material.questions), time.perf_counter() - begin)
    echoes = Echoes(model, material, heads)
    results: dict[str, Any] = {"model": options.model, "versions": versions()}
    if RESULTS.is_file():
        results = json.loads(RESULTS.read_text("utf-8")) | results
    results["leave_one_out"] = leave_one_out(material, names, echoes)
    write_json(RESULTS, results)
    if options.tasks is not None:
        of_all = joint.select(count=options.n_heads)
        fits = cross_fit_layers(material, Folds.suited_to(material.questions), progress=False)
        fingerprint = interp.models.fingerprint(model)
        probes = fit_detector(material, fingerprint=fingerprint, fits=fits, progress=False)
        scores = combine(material, fits[0], TRAINED)
        detector = fit_echo(material, probes, scores=scores, heads=of_all, read=echoes.read)
        results["honest"] = honest(model, detector, options)
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
        for name, row in rows["echo"].items()
    )
    of_probes, of_echo = means["probes"], means["echo"]
    lines += (
        f"| mean | | {_three(of_probes['auc'])} | {_three(of_echo['auc'])} | "
        f"{results['leave_one_out']['alone']:.2f} | {_three(of_probes['fired_on_false'])} | "
        f"{_three(of_echo['fired_on_false'])} | {_three(of_probes['fired_on_twins'], 3)} | "
        f"{_three(of_echo['fired_on_twins'], 3)} |\n"
    )
    tests = [row["fitted"] for row in rows["echo"].values()]
    share = {
        key: np.mean([part[f"tested_{key}"] for part in tests])
        for key in ("false", "twins", "background")
    }
    honest_part = ""
    if "honest" in results:
        n, fired, value, low, high = results["honest"]["all"]
        sets = ", ".join(
            f"{name} {count[1]} of {count[0]}"
            for name, count in results["honest"].items()
            if name != "all"
        )
        honest_part = (
            f"\nQuestions of other people, each detection a false alarm: {fired} of {n}, "
            f"{value:.4f} [{low:.4f}, {high:.4f}] ({sets}).\n"
        )
    columns = "AUC, probes|AUC, with echo|AUC, fall in the echo alone|recall, probes|"
    columns += "recall, with echo|twins, probes|twins, with echo"
    head = f"| relation | questions | {' | '.join(columns.split('|'))} |\n" + "|---" * 9 + "|"
    return f"""Made by `benchmarks/echo_transfer.py`. {results["model"]}; probes, heads, weights and
threshold from all other relations. 95 % intervals from resampling subjects, in the means from
resampling relations.

{head}
{lines}
Tested by the echo: {share["false"]:.2f} of false premises, {share["twins"]:.2f} of twins,
{share["background"]:.2f} of texts without a premise.
{honest_part}"""


def _three(values: Sequence[float], digits: int = 2) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in values)
    return f"{value} [{low}, {high}]"


def main(options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = measure(options)
    write_json(RESULTS, results)
    write_between(PAGE, "echo transfer", page(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
