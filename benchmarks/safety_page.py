"""Write what the fuzzers and the weight check measured into docs/safety.md.

python benchmarks/fuzz.py
python benchmarks/fuzz_coverage.py
python benchmarks/weight_check.py
python benchmarks/safety_page.py
"""

import json
from pathlib import Path
from typing import Any

from marked import write_between

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "safety.md"


def fuzz_table(content: dict[str, Any]) -> str:
    """One row a reader, and their sum."""
    readers = content["readers"]
    lines = [
        "| reader | inputs | read | refused | foreign exceptions | slowest (s) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in readers.items():
        cells = [f"{one[key]:,}" for key in ("inputs", "read", "refused", "foreign")]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {one['slowest']:.2f} |")
    sums = [sum(one[key] for one in readers.values()) for key in ("inputs", "read", "refused")]
    foreign = sum(one["foreign"] for one in readers.values())
    lines.append(f"| **all** | {sums[0]:,} | {sums[1]:,} | {sums[2]:,} | **{foreign:,}** | |")
    return "\n".join([*lines, "", f"Seed {content['seed']}; one core of a shared machine."])


def coverage_table(content: dict[str, Any]) -> str:
    """One row a reader, and their sum."""
    lines = [
        "| reader | inputs | places, first | places | inputs kept | foreign exceptions |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    keys = ("runs", "places_first", "places", "inputs_kept", "crashes")
    for name, one in content.items():
        lines.append(f"| {name} | " + " | ".join(f"{one[key]:,}" for key in keys) + " |")
    runs, crashes = (sum(one[key] for one in content.values()) for key in ("runs", "crashes"))
    lines.append(f"| **all** | {runs:,} | | | | **{crashes}** |")
    return "\n".join(lines)


def weight_sentence(content: dict[str, Any]) -> str:
    """What looking at every weight costs."""
    return (
        f"On the embedded model ({content['model']}) the look at every weight takes "
        f"{content['check_seconds'] * 1000:.0f} ms of a load of {content['load_seconds']:.2f} s, "
        f"{100 * content['share']:.1f} %."
    )


def main() -> None:
    fuzz = json.loads((RESULTS / "fuzz.json").read_text(encoding="utf-8"))
    write_between(PAGE, "fuzz", fuzz_table(fuzz))
    coverage = json.loads((RESULTS / "fuzz_coverage.json").read_text(encoding="utf-8"))
    write_between(PAGE, "coverage", coverage_table(coverage))
    weights = json.loads((RESULTS / "weight_check.json").read_text(encoding="utf-8"))
    write_between(PAGE, "weights", weight_sentence(weights))


if __name__ == "__main__":
    main()
