"""Plans beside the runs that they are of: seconds, peak memory and bytes on disk.

    python benchmarks/plan_check.py [--cpu] [--only NAME …]

Writes ``benchmarks/results/plan_check.json``, where runs that are left out keep what they had, and
the table in ``docs/how-to/before-a-long-run.md``.

Each run is made by ``interp`` in a process of its own, and so is its plan, before it. The run's
seconds are the whole process's; its memory is the process's high-water mark, its disk the run
directory's. A ratio is run over plan. The limit for all three is 30 % either way. ``--cpu`` counts
the processor's seconds of these processes in place of the clock's, in the plan and in the run: for
a machine that does other work at the same time (``OMP_NUM_THREADS=1`` makes the two alike).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from marked import write_between

from interp.files.documents import read_json, write_json

LIMIT = 0.30
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "plan_check.json"
PAGE = ROOT / "docs" / "how-to" / "before-a-long-run.md"
RUNS: dict[str, list[str]] = {
    "locate": [
        *("locate", "--premises", "capitals", "--method", "attribution", "--limit", "80"),
        *("--out", "locate"),
    ],
    "evaluate": ["evaluate", "locate", "--answers", "best"],
    "patch": ["patch", "--pairs", "ioi", "--limit", "32", "--method", "exact", "--out", "patch"],
    "train": [
        *("moelora", "train", "--data", "arithmetic", "facts", "--steps", "30"),
        *("--test-limit", "30", "--out", "train"),
    ],
    "analyze": ["moelora", "analyze", "train", "--limit", "150", "--out", "analyze"],
}
NEEDS = {"evaluate": ["locate"], "analyze": ["train"]}
"""Runs that must be there before."""

IN_CHILD = """
import json, sys, time
import interp.runs.usage as usage
import interp.cli.plan as plans
clock = sys.argv.pop(1)
if clock == "cpu":
    usage.time.perf_counter = usage.process_seconds = time.process_time
found = {}
def keep(plan, console):
    found.update(plan.to_dict())
    shown(plan, console)
if "--plan" in sys.argv:
    shown, plans.print_plan = plans.print_plan, keep
from interp.cli.main import main
main(sys.argv[2:])
found["peak"] = usage.peak_memory()
found["cpu"] = time.process_time()
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


def child(words: list[str], folder: Path, clock: str) -> dict[str, Any]:
    """Run ``interp`` in a process of its own; what it says of itself, and its seconds."""
    report = folder / "report.json"
    begin = time.perf_counter()
    command = [sys.executable, "-c", IN_CHILD, clock, str(report), *words]
    subprocess.run(command, cwd=folder, check=True)
    found = {"wall": time.perf_counter() - begin, **json.loads(report.read_text())}
    return {**found, "taken": found[clock]}


def compared(name: str, folder: Path, clock: str) -> dict[str, Any]:
    """Plan, then run; the ratios of run over plan."""
    words = RUNS[name]
    before = directory_bytes(folder)
    plan = child([*words, "--plan"], folder, clock)
    (folder / "report.json").unlink()
    untouched = directory_bytes(folder) == before
    run = child(words, folder, clock)
    out = words[words.index("--out") + 1] if "--out" in words else words[1]
    disk = directory_bytes(folder / out)
    return {
        "words": words,
        "clock": clock,
        "planned": {key: plan[key] for key in ("seconds", "memory", "disk", "passes", "stages")},
        "planning": {"seconds": plan["planning"], "with_start": plan["taken"]},
        "run": {"seconds": run["taken"], "wall": run["wall"], "memory": run["peak"], "disk": disk},
        "ratios": {
            "seconds": run["taken"] / plan["seconds"],
            "memory": run["peak"]["cpu"] / plan["memory"]["cpu"],
            "disk": disk / plan["disk"],
        },
        "planning_share": plan["planning"] / run["taken"],
        "untouched": untouched,
    }


def directory_bytes(folder: Path) -> int:
    """Bytes of all files below, without this script's own report."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.name != "report.json")


def table(results: dict[str, Any]) -> str:
    """The page's table: a run a row, with the ratios of run over plan."""
    lines = [
        "| `interp …` | planned | run | run / plan: time | memory | disk | the plan took |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in results.values():
        planned, ratios = found["planned"]["seconds"], found["ratios"]
        cells = [f"`{' '.join(found['words'])}`", f"{planned:.0f} s"]
        cells.append(f"{found['run']['seconds']:.0f} s")
        cells += [f"{ratios[key]:.2f}" for key in ("seconds", "memory", "disk")]
        cells.append(f"{found['planning']['seconds']:.0f} s")
        lines.append(f"| {' | '.join(cells)} |")
    if any(found["clock"] == "cpu" for found in results.values()):
        lines += ["", "Seconds of the processor, one thread, on a machine that did other work too."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=tuple(RUNS), default=tuple(RUNS))
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor")
    options = parser.parse_args()
    clock = "cpu" if options.cpu else "wall"
    results: dict[str, Any] = read_json(RESULTS) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above)
        for name in options.only:
            for needed in NEEDS.get(name, []):
                if needed not in options.only:
                    child(RUNS[needed], folder, clock)
            results[name] = compared(name, folder, clock)
            ratios = results[name]["ratios"]
            shown = "  ".join(f"{key} {value:.2f}" for key, value in ratios.items())
            print(
                f"{name}: run / plan: {shown}; the plan took "
                f"{results[name]['planning']['seconds']:.0f} s, "
                f"{results[name]['planning_share']:.0%} of the run's "
                f"{results[name]['run']['seconds']:.0f} s",
                flush=True,
            )
            write_json(RESULTS, results)
    write_between(PAGE, "plan", table(results))
    outside = [
        f"{name} {key} {value:.2f}"
        for name in options.only
        for key, value in results[name]["ratios"].items()
        if not 1 - LIMIT <= value <= 1 + LIMIT
    ]
    print(f"outside of {LIMIT:.0%}: {', '.join(outside)}" if outside else "all within the limit")


if __name__ == "__main__":
    main()
