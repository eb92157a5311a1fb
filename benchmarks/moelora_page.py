"""Write what was measured of MoELoRA into docs/moelora.md.

python benchmarks/moelora_step.py
python benchmarks/moelora_training.py --tasks DIR
python benchmarks/moelora_page.py
"""

import json
from pathlib import Path
from typing import Any

from marked import write_between

from interp.moelora.training.adapters import METHOD_NAMES
from interp.report.comparison_page import summary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def with_interval(mean: float, ends: list[float] | None) -> str:
    """A mean with the ends of its interval, if it has one."""
    return f"{mean:.3f}" if ends is None else f"{mean:.3f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def accuracy_rows(content: dict[str, Any]) -> str:
    """Accuracy by task and method, with intervals over questions; seeds one by one."""
    methods = content["methods"]
    tasks = list(next(iter(methods.values()))["accuracy"])
    lines = [
        "| | no adapter | " + " | ".join(METHOD_NAMES[name] for name in methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for task in tasks:
        cells = [f"{content['base']['accuracy'][task]['value']:.3f}"]
        for of_method in methods.values():
            one = of_method["accuracy"][task]
            seeds = ", ".join(f"{value:.2f}" for value in one["by_seed"])
            cells.append(f"{with_interval(one['mean'], one['questions'])}; seeds {seeds}")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def loss_rows(content: dict[str, Any]) -> str:
    """Held-out loss by task, and what the experts are like at the end."""
    methods = content["methods"]
    tasks = list(next(iter(methods.values()))["held_out_loss"])
    lines = [
        "| | " + " | ".join(METHOD_NAMES[name] for name in methods) + " |",
        "|---|" + "---|" * len(methods),
    ]
    for task in tasks:
        cells = [
            f"{of_method['held_out_loss'][task]['mean']:.3f}" for of_method in methods.values()
        ]
        lines.append(f"| loss per answer token, {task} (nats) | " + " | ".join(cells) + " |")
    for key, name in (
        ("dead_experts", "dead experts at the end, by seed"),
        ("cosine", "mean cosine of experts' outputs, by seed"),
    ):
        cells = []
        for of_method in methods.values():
            values = (of_method["experts"] or {}).get(key)
            if isinstance(values, dict):
                values = values["by_seed"]
            cells.append("–" if values is None else ", ".join(f"{value:.3g}" for value in values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_text(content: dict[str, Any]) -> str:
    """The comparison on real questions."""
    settings = content["settings"]
    first = next(iter(content["methods"].values()))
    said = "\n".join(f"- {sentence}" for sentence in summary(content))
    return f"""### On real questions

`benchmarks/moelora_training.py`, figures in `benchmarks/results/moelora_training.json`:
{", ".join(settings["data"])}; {settings["model"]}, {first["steps"]} steps of {settings["batch"]}
examples, learning rate {settings["learning_rate"]:g} for all methods, questions of at most
{settings["max_length"]} tokens; {first["accuracy"]["mean"]["n"]} held-out questions. Intervals
are over questions, of the mean over seeds.

{accuracy_rows(content)}

{said}

{loss_rows(content)}
"""


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
    parts = []
    for name, text_of in (("moelora_training", training_text), ("moelora_step", speed_text)):
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(text_of(json.loads(path.read_text(encoding="utf-8"))))
    write_between(ROOT / "docs" / "moelora.md", "measured", "\n".join(parts))


if __name__ == "__main__":
    main()
