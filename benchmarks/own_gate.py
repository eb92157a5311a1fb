"""What a gate keeps of the gain told where, in runs of one relation each with default settings.

    python benchmarks/own_gate.py --out DIR [--tasks TASKS] [--model MODEL] [--publish]

For each relation and seed: the facts that the model knows, split by subject and template; heads by
attribution on the search part; the detector that `interp evaluate --gate probe` trains for the run
(`interp.commands.evaluate.run_detector`: the search part, and other relations that ship). The
held-out part is scored without a constraint, told which words are false, and gated. With --tasks,
each detector also reads questions of other people, from ``TASKS/NAME``: every detection there is a
false alarm. DIR keeps detectors and scores, so that an interrupted call goes on.

Prints the table; --publish writes it between the marks of docs/gate.md, with
benchmarks/results/own_gate.json. Some seven minutes of one core a row on the embedded model. The
detector that ships is not used, so that this is what any other model gets.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from detector_transfer import honest
from marked import write_between
from support_transfer import gated

import interp
from interp.commands.evaluate import run_detector
from interp.files.documents import read_json, write_json
from interp.runs.manifest import versions
from interp.statistics.significance import mean_interval
from probes.detector.detect import detect_premises
from probes.detector.support_detector import AnyDetector

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "own_gate.json"
PAGE = HERE.parent / "docs" / "gate.md"
COLUMNS = [
    "relation, seed",
    "n",
    "no constraint",
    "told",
    "gated",
    "gain kept",
    "fires, false",
    "fires, twins",
    "fall on twins, points",
    "fall of P(true object), twins",
]
AVERAGED = ("none", "told", "gated", "fires_false", "fires_twins", "twins_points", "fall_p_true")


@dataclass(frozen=True)
class Options:
    """What is run."""

    out: Path
    """Keeps detectors and scores."""
    model: str = "smollm2-135m"
    """Any model of `interp.load_model`."""
    relations: tuple[str, ...] = ("capitals", "landmarks", "languages", "currencies", "products")
    """Each makes runs of its own."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the split and the false objects; every relation with the first, then with the next."""
    limit: int = 130
    """Facts that the model is asked, best known first."""
    n_heads: int = 3
    """About 1 % of the embedded model's."""
    tasks: Path | None = None
    """Folder with questions that other people asked."""
    honest: int = 210
    """Questions of each set, evenly spaced."""
    publish: bool = False
    """Write the page and the results that it is made of."""


def measure_run(model: Any, relation: str, seed: int, options: Options) -> dict[str, Any]:
    """One run: its heads, its detector, and the scores of its held-out part."""
    begin = time.perf_counter()
    premises = interp.load_premises(relation, seed=seed, limit=options.limit)
    split = interp.filter_known(model, premises, progress=False).split(seed=seed)
    effects = interp.locate_heads(model, split.search, site="attention", progress=False)
    heads = effects.select(count=options.n_heads)
    folder = options.out / f"{relation}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    detector = run_detector(model, split, folder, seed=seed, progress=False)
    assert isinstance(detector, AnyDetector)  # not a caller's own kind
    detections = detect_premises(model, split.held_out, detector=detector, progress=False)
    row = {
        **{"relation": relation, "seed": seed},
        "heads": [list(head) for head in heads],
        **gated(model, split.held_out, heads, detections),
        "fires_false": float(np.mean([found.fired for found in detections.false])),
        "fires_twins": float(np.mean([found.fired for found in detections.twin])),
        "detector": {**detector.training, "threshold": detector.threshold},
    }
    if options.tasks is not None:
        row["honest"] = dict(honest(model, detector, options.tasks, options.honest))["all"]
    return row | {"seconds": time.perf_counter() - begin}


def page(results: dict[str, Any]) -> str:
    """The measured part of the page."""
    rows = results["runs"]
    lines = [_line(f"{row['relation']}, {row['seed']}", row["n"], row) for row in rows]
    means = {name: float(np.mean([row[name] for row in rows])) for name in AVERAGED}
    lines.append(_line("mean", "", means))
    gained = [row for row in rows if row["told"] > row["none"]]
    relations = [row["relation"] for row in gained]
    mean, low, high = mean_interval([_kept(row) for row in gained], relations)
    words = (
        f"Gain kept, over all: {_kept(means):.2f}; the mean of the rows is {mean:.2f} "
        f"[{low:.2f}, {high:.2f}] (95 %, relations resampled)."
    )
    honest_rows = [row["honest"] for row in rows if "honest" in row]
    if honest_rows:
        shares = [100 * part["share"][0] for part in honest_rows]
        words += (
            f" Of {honest_rows[0]['n']} questions of other people the detectors fire on "
            f"{np.mean(shares):.2f} % on average, {min(shares):.2f} to {max(shares):.2f} %."
        )
    head = f"| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|"
    return (
        f"Made by `benchmarks/own_gate.py`. {results['model']}, {results['n_heads']} heads, "
        f"float32.\n\n{head}\n" + "\n".join(lines) + f"\n\n{words}\n"
    )


def _line(name: str, n: object, row: dict[str, Any]) -> str:
    kept = f"{_kept(row):.2f}" if row["told"] > row["none"] else "–"
    two = [f"{row[key]:.2f}" for key in ("none", "told", "gated")]
    rest = [f"{row['fires_false']:.2f}", f"{row['fires_twins']:.3f}"]
    rest += [f"{row['twins_points']:.1f}", f"{row['fall_p_true']:.3f}"]
    return f"| {' | '.join([name, str(n), *two, kept, *rest])} |"


def _kept(row: dict[str, Any]) -> float:
    return (row["gated"] - row["none"]) / (row["told"] - row["none"])


def finished(options: Options) -> Sequence[dict[str, Any]]:
    """The rows that are there, in the order in which they are run."""
    paths = [options.out / f"{name}-{seed}" / "row.json" for name, seed in runs_of(options)]
    return [read_json(path) for path in paths if path.is_file()]


def runs_of(options: Options) -> list[tuple[str, int]]:
    """Relation and seed of each run."""
    return [(name, seed) for seed in options.seeds for name in options.relations]


def main(options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = interp.load_model(options.model)
    for relation, seed in runs_of(options):
        path = options.out / f"{relation}-{seed}" / "row.json"
        if not path.is_file():
            row = measure_run(model, relation, seed, options)
            logging.info("%s", {key: row[key] for key in ("relation", "seed", *AVERAGED)})
            write_json(path, row)
    results = {
        **{"model": options.model, "n_heads": options.n_heads, "limit": options.limit},
        **{"runs": finished(options), "versions": versions()},
    }
    print(page(results))
    if options.publish:
        write_json(RESULTS, results)
        write_between(PAGE, "own gate", page(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
