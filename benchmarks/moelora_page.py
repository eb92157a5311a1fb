"""Write what was measured of MoELoRA into docs/moelora.md.

python benchmarks/moelora_step.py
python benchmarks/moelora_training.py --tasks DIR --out RUNS --publish
python benchmarks/moelora_page.py
"""

import json
from pathlib import Path
from typing import Any

from marked import write_between
from moelora_tables import (
    accuracy_rows,
    change,
    claim_rows,
    difference_rows,
    loss_rows,
    overall,
    rate_rows,
    top_k_rows,
)

from interp.moelora.training.adapters import METHOD_NAMES
from interp.report.comparison_page import summary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NOT_YET = """The comparison of five seeds with a learning rate for each method
(`benchmarks/moelora_training.py`) has no finished seed yet. What there is so far is shorter, and
settles nothing.
"""


def short_text(content: dict[str, Any]) -> str:
    """A short comparison at one learning rate."""
    settings = content["settings"]
    first = next(iter(content["methods"].values()))
    lines = "\n".join(f"- {sentence}" for sentence in summary(content))
    return f"""### A shorter comparison

`interp moelora compare` on {", ".join(settings["data"])}, figures in
`benchmarks/results/moelora_short.json`: one learning rate ({settings["learning_rate"]:g}) for all
methods, {first["steps"]} steps of {settings["batch"]} examples,
questions of at most {settings["max_length"]} tokens, {first["accuracy"]["mean"]["n"]} of them held
out. Intervals are over questions, of the mean over seeds.

{accuracy_rows(content)}

{lines}

{loss_rows(content)}
"""


def training_text(content: dict[str, Any]) -> str:
    """The comparison on real questions, as far as it is finished."""
    settings = content["settings"]
    parts = [group_text(name, found, settings) for name, found in content["groups"].items()]
    return f"""### On real questions

`benchmarks/moelora_training.py`, figures in `benchmarks/results/moelora_training.json`:
{settings["model"]}, {settings["steps"]} steps of {settings["batch"]} examples, questions of at most
{settings["max_length"]} tokens. Each method has the learning rate with the lowest loss after
{settings["rate_steps"]} steps (seed 0) on a tenth of the training questions, set apart for this;
the comparison trains on all of them. Intervals are 95 %, paired, over questions (of the mean over
seeds) and over seeds (Student's t). Steps per second are by the clock, of a machine that did other
work too; the cost beside LoRA stands below. GSM8K is left out: 13 % of its questions with their
worked answers fit into 128 tokens.

{claim_rows(content)}

The paper's figures are means over six sets of math and four of common sense, on a model fifty times
as large. {all_text(content["all_sets"])}

{"".join(parts)}"""


def all_text(found: dict[str, Any] | None) -> str:
    """Differences over the sets of all groups, in a sentence."""
    if found is None:
        return "No seed is finished in all groups yet, so there is no mean over all sets."
    gain, contrast = (overall(found[f"moelora_less_{name}"]) for name in ("lora", "moe"))
    return (
        f"Over all sets, {len(found['seeds'])} seeds: MoELoRA less LoRA {change(gain)}, "
        f"MoELoRA less the same without contrastive loss {change(contrast)}."
    )


def group_text(name: str, found: dict[str, Any], settings: dict[str, Any]) -> str:
    """One group's learning rates and comparison."""
    done, planned = found["trials"]
    edges = [METHOD_NAMES[method] for method, rate in found["rates"].items() if rate["at_edge"]]
    said = f"#### {name}: {', '.join(found['sets'])}\n\n"
    if not done:
        return f"{said}Not begun.\n\n"
    if done < planned:
        said += f"{done} of {planned} trials of learning rates are finished.\n\n"
    elif edges:
        said += f"At the edge of the grid, where a better rate may lie beyond: {', '.join(edges)}."
        said += "\n\n"
    said += f"{rate_rows(found)}\n\n"
    finished, content = f"{len(found['seeds'])} of {len(settings['seeds'])} seeds", None
    if found["comparison"] is None:
        return f"{said}{finished} are finished.\n\n"
    content = found["comparison"]
    said += f"{finished} are finished; {overall(first_accuracy(content))['n']} questions.\n\n"
    said += f"{accuracy_rows(content)}\n\n{difference_rows(content)}\n\n{loss_rows(content)}\n\n"
    return said + (f"{top_k_rows(found)}\n\n" if found.get("top_k") else "")


def first_accuracy(content: dict[str, Any]) -> dict[str, Any]:
    """The accuracies of the first method, by task."""
    return next(iter(content["methods"].values()))["accuracy"]


def speed_text(step: dict[str, Any]) -> str:
    """What a step costs beside LoRA, and the layer beside a loop over experts."""
    ratios, limits = step["ratios"], step["limits"]
    rows = [
        ("training step of the whole model / LoRA's", "training_step", "at most"),
        ("forward pass in evaluation / LoRA's", "eval_forward", "at most"),
        ("peak memory of a training step / LoRA's", "memory", "at most"),
        ("gather loop / layer, 768 tokens, d = 576", "gather_loop_768x576", "at least"),
        ("gather loop / layer, 4,096 tokens, d = 2,048", "gather_loop_4096x2048", "at least"),
    ]
    table = "\n".join(
        f"| {name} | {ratios[key]:.2f} | {sense} {limits[key]:g} |" for name, key, sense in rows
    )
    return f"""### Cost

`benchmarks/moelora_step.py`, figures in `benchmarks/results/moelora_step.json`; one process, in
turn, {step["threads"]} threads, medians of {step["rounds"]} rounds; LoRA of rank 36.

| | ratio | held to |
|---|---|---|
{table}
"""


def main() -> None:
    """Write the page's measured part."""
    parts = [] if (RESULTS / "moelora_training.json").is_file() else [NOT_YET]
    texts = {
        "moelora_training": training_text,
        "moelora_short": short_text,
        "moelora_step": speed_text,
    }
    for name, text_of in texts.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(text_of(json.loads(path.read_text(encoding="utf-8"))))
    write_between(ROOT / "docs" / "moelora.md", "measured", "\n".join(parts))


if __name__ == "__main__":
    main()
