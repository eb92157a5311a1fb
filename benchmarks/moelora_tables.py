"""The tables of MoELoRA's pages: accuracies, losses, differences, learning rates, claims."""

from collections.abc import Mapping, Sequence
from typing import Any

from interp.moelora.training.adapters import METHOD_NAMES
from interp.moelora.training.scoring import MEAN
from interp.report.comparison_page import intervals, points, verdict

PAPER = {"math": (4.2, -3.0), "common-sense": (1.0, -0.9)}
"""By group, what arXiv 2402.12851 reports: MoELoRA less LoRA, and the loss without contrast."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(mean: float, ends: list[float] | None) -> str:
    """A mean with the ends of its interval, if it has one."""
    return f"{mean:.3f}" if ends is None else f"{mean:.3f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def overall(by_task: Mapping[str, Any]) -> Any:
    """The entry over all tasks, which for a single task is its own."""
    return by_task[MEAN] if MEAN in by_task else next(iter(by_task.values()))


def change(found: Mapping[str, Any]) -> str:
    """A difference of accuracies in points with both intervals."""
    return f"{points(found['mean'])} ({intervals(found, None, ', ')})"


def accuracy_rows(content: Mapping[str, Any]) -> str:
    """Accuracy by task and method, with intervals over questions; seeds one by one."""
    methods, base = content["methods"], content["base"].get("accuracy", {})
    rows = []
    for task in next(iter(methods.values()))["accuracy"]:
        cells = [task, f"{base[task]['value']:.3f}" if task in base else "–"]
        for of_method in methods.values():
            score = of_method["accuracy"][task]
            seeds = ", ".join(f"{value:.2f}" for value in score["by_seed"])
            cells.append(f"{with_interval(score['mean'], score['questions'])}; seeds {seeds}")
        rows.append(cells)
    return table(["", "no adapter", *(METHOD_NAMES[name] for name in methods)], rows)


def loss_rows(content: Mapping[str, Any]) -> str:
    """Held-out loss by task, speed, and what the experts are like at the end."""
    methods = content["methods"]
    rows = [
        [f"loss per answer token, {task} (nats)"]
        + [f"{of_method['held_out_loss'][task]['mean']:.3f}" for of_method in methods.values()]
        for task in next(iter(methods.values()))["held_out_loss"]
    ]
    speeds = [1 / of_method["seconds_per_step"] for of_method in methods.values()]
    rows.append(["steps per second, median run", *(f"{speed:.3f}" for speed in speeds)])
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
        rows.append([name, *cells])
    return table(["", *(METHOD_NAMES[name] for name in methods)], rows)


def difference_rows(content: Mapping[str, Any]) -> str:
    """By task, the paired differences of accuracy in points."""
    columns = {
        "MoELoRA − LoRA": content["differences"]["moelora"],
        "MoELoRA − without contrastive loss": content["contrastive_gain"],
        "without contrastive loss − LoRA": content["differences"]["moe"],
    }
    tasks = list(content["contrastive_gain"])
    rows = [[task, *(change(by_task[task]) for by_task in columns.values())] for task in tasks]
    return table(["points of accuracy", *columns], rows)


def rate_rows(of_group: Mapping[str, Any]) -> str:
    """The validation loss of each method at each learning rate; the chosen one is bold."""
    rates = of_group["rates"]
    grid = sorted({trial["rate"] for found in rates.values() for trial in found["tried"]})
    rows = []
    for method, found in rates.items():
        losses = {trial["rate"]: trial["loss"] for trial in found["tried"]}
        cells = [METHOD_NAMES[method]]
        for rate in grid:
            loss = losses.get(rate)
            text = "–" if rate not in losses else "diverged" if loss is None else f"{loss:.4f}"
            cells.append(f"**{text}**" if rate == found["chosen"] else text)
        rows.append(cells)
    return table(["validation loss (nats) at", *(f"{rate:g}" for rate in grid)], rows)


def top_k_rows(of_group: Mapping[str, Any]) -> str:
    """Other numbers of experts per token beside the usual one."""
    rows = [
        [
            f"top-{found['top_k']} less top-{found['beside']}",
            change(overall(found["difference"])),
            ", ".join(map(str, found["seeds"])),
            verdict(overall(found["difference"])),
        ]
        for found in of_group["top_k"]
    ]
    return table(["", "points of accuracy", "seeds", ""], rows)


def claim_rows(content: Mapping[str, Any]) -> str:
    """The paper's claims beside what was found, in points of accuracy."""
    rows = []
    for group, (gain, loss) in PAPER.items():
        of_group = content["groups"].get(group) or {}
        found = of_group.get("comparison")
        pairs = (
            (f"MoELoRA over LoRA, {group}", gain, lambda one: one["differences"]["moelora"], 1),
            (f"without contrastive loss, {group}", loss, lambda one: one["contrastive_gain"], -1),
        )
        for name, paper, by_task, sign in pairs:
            cells = ["no seed is finished", ""]
            if found:
                cells = _claim_cells(overall(by_task(found)), sign, of_group["seeds"])
            rows.append([name, f"{paper:+.1f}", *cells])
        for other in of_group.get("top_k") or []:
            said = f"top-2 over top-{other['top_k']}, {group}"
            cells = _claim_cells(overall(other["difference"]), -1, other["seeds"])
            rows.append([said, "ahead", *cells])
    return table(["claim", "paper, 7B model", "here", ""], rows)


def _claim_cells(found: Mapping[str, Any], sign: int, seeds: Sequence[int]) -> list[str]:
    """A difference, turned round if `sign` is -1, and what its intervals say."""
    turned = dict(found)
    if sign < 0:
        turned["mean"] = -found["mean"]
        for name in ("questions", "seeds"):
            if found.get(name):
                turned[name] = [-found[name][1], -found[name][0]]
    n = f"{len(seeds)} seed" + "s" * (len(seeds) != 1)
    return [f"{change(turned)}; {n}", verdict(turned)]
