"""Edges of the embedded model: how fast, how much memory, and does attribution find exact effects?

Two tasks of 16 pairs: indirect-object identification, and capitals (clean: the true-premise twin;
corrupted: the false premise). All edges are scored by EAP and EAP-IG, with the seconds and the
memory that it took. Then edges are patched exactly, one by one: some drawn from all edges, and some
from the half with the larger absolute EAP score. Spearman's correlation is over those. Exact edges
may be of fewer pairs than are timed, and are compared with the attribution of those pairs. Some of
the upper half are patched in the clean run as well, from the corrupted one: EAP-IG takes gradients
on the way between both runs, so that the mean of both effects is what it should agree with.

    python benchmarks/edges.py
    python benchmarks/edges.py --tasks capitals     # one task; the other stays as it was

Writes benchmarks/results/edges.json, and its tables into docs/edges.md. CPU seconds are those of
the process: on a busy machine they say what a quiet one would take.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from head_sweep import Pairs, capitals_pairs
from marked import write_between
from measuring import timed

import interp
from interp.files.documents import read_json, write_json
from interp.patching import EdgeEffects, patch_edges
from interp.runs.manifest import versions
from interp.tasks import encode_pairs, ioi_pairs

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "edges.md"
METHODS = {"eap": {}, "eap-ig": {"steps": 5}}
SHOWN = 8
TASKS = ("ioi", "capitals")


@dataclass(frozen=True)
class Options:
    """Size of the experiment."""

    model: str = "smollm2-135m"
    tasks: tuple[str, ...] = TASKS
    pairs: int = 16
    exact_pairs: int = 16
    """On how many of them edges are patched exactly."""
    both_ways: int = 100
    """How many edges of the upper half are patched in the clean run too."""
    edges: int = 300
    """How many edges are patched exactly, of all and of the upper half each."""
    memory_mib: int = 1024
    """What a call may take."""
    seed: int = 0
    out: Path = ROOT / "benchmarks" / "results" / "edges.json"


def pairs_of(task: str, model: Any, options: Options) -> Pairs:
    """The pairs of a task, of one length each."""
    if task == "capitals":
        return capitals_pairs(model, options.pairs, options.seed)
    pairs = ioi_pairs(options.pairs, tokenizer=model.tokenizer, seed=options.seed)
    encoded = encode_pairs(model.tokenizer, pairs)
    return Pairs(encoded.clean, encoded.corrupted, encoded.metric)


def drawn_edges(scores: EdgeEffects, options: Options) -> dict[str, list[tuple[str, str]]]:
    """Edges drawn from all, and from the half with the larger absolute score."""
    generator = np.random.default_rng(options.seed)
    order = scores.order()
    drawn = {}
    for name, among in (("all", order), ("upper half", order[: len(order) // 2])):
        chosen = generator.choice(among, min(options.edges, len(among)), replace=False)
        writers, readers = np.unravel_index(np.sort(chosen), scores.mean.shape)
        names = scores.graph.writers, scores.graph.readers
        drawn[name] = [(names[0][w], names[1][r]) for w, r in zip(writers, readers, strict=True)]
    return drawn


def measure(task: str, model: Any, options: Options) -> dict[str, Any]:
    """Seconds, memory and agreement of one task."""
    pairs = pairs_of(task, model, options)
    shared: dict[str, Any] = {"budget": options.memory_mib * 2**20, "progress": False}
    given = (model, pairs.clean, pairs.corrupted, pairs.metric)
    found: dict[str, EdgeEffects] = {}
    figures: dict[str, Any] = {"prompts": len(pairs.clean), "tokens": pairs.clean.width}
    for method, settings in METHODS.items():
        begin = time.process_time()
        run = timed(lambda m=method, s=settings: patch_edges(*given, method=m, **s, **shared))
        found[method] = run.value
        figures[method] = {"seconds": run.seconds, "mib": run.mib}
        figures[method]["cpu_seconds"] = time.process_time() - begin
        print(task, method, figures[method], flush=True)
    eap = found["eap"]
    gap = float((eap.clean - eap.corrupted).mean())
    figures |= {"edges": len(eap.order()), "writers": len(eap.graph.writers), "gap": gap}
    figures["first"] = eap.to_dataframe(SHOWN).to_dict("records")
    drawn = drawn_edges(eap, options)
    every = list(dict.fromkeys(edge for edges in drawn.values() for edge in edges))
    some = list(range(min(options.exact_pairs, len(pairs.clean))))
    few = (
        pairs.clean.take(some),
        pairs.corrupted.take(some),
        pairs.metric.take(torch.tensor(some)),
    )
    run = timed(lambda: patch_edges(model, *few, method="exact", edges=every, **shared))
    figures["exact"] = {"edges": len(every), "seconds": run.seconds, "mib": run.mib}
    figures["exact"]["prompts"] = len(some)
    figures["both_ways"] = options.both_ways
    exact = {"corrupted run": run.value}
    some_edges = drawn["upper half"][:: max(1, len(drawn["upper half"]) // options.both_ways)]
    there = (model, few[1], few[0], few[2])
    back = patch_edges(*there, method="exact", edges=some_edges, **shared)
    exact["both ways"] = replace(back, values=(run.value.values - back.values) / 2)
    drawn["both ways"] = some_edges
    figures["spearman"] = {
        method: {
            name: _agreement(
                _of_first(result, len(some)), exact.get(name, exact["corrupted run"]), edges
            )
            for name, edges in drawn.items()
        }
        for method, result in found.items()
    }
    print(task, figures["spearman"], flush=True)
    return figures


def _of_first(result: EdgeEffects, n: int) -> EdgeEffects:
    """The scores of the first prompts alone."""
    rows = {name: getattr(result, name)[:n] for name in ("values", "clean", "corrupted", "groups")}
    return replace(result, **rows)


def _agreement(
    result: EdgeEffects, exact: EdgeEffects, edges: list[tuple[str, str]]
) -> dict[str, float]:
    """Correlations over some edges."""
    others = ~exact.graph.mask(edges)
    return result.agreement(replace(exact, values=exact.values.masked_fill(others, torch.nan)))


def tables(results: dict[str, Any]) -> str:
    """The tables of the page."""
    lines = [
        "| task | method | seconds (of CPU) | MiB | Spearman with exact: all edges | upper half "
        "| upper half, mean of both ways |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, figures in results["tasks"].items():
        for method in METHODS:
            spent, agreed = figures[method], figures["spearman"][method]
            cells = (agreed.get(name) for name in ("all", "upper half", "both ways"))
            shown = " | ".join(
                f"{cell['spearman']:.2f} (n = {cell['n']})" if cell else "–" for cell in cells
            )
            lines.append(
                f"| {task} | {method} | {spent['seconds']:.0f} ({spent['cpu_seconds']:.0f}) | "
                f"{spent['mib']:.0f} | {shown} |"
            )
    for task, figures in results["tasks"].items():
        exact = figures["exact"]
        lines += [
            "",
            f"{task}: {figures['prompts']} pairs of {figures['tokens']} tokens; {exact['edges']} "
            f"edges patched exactly on {exact['prompts']} of them.",
        ]
    for task, figures in results["tasks"].items():
        lines += [
            "",
            f"The largest edges of {task} by EAP, of {figures['edges']:,}; clean and corrupted run "
            f"lie {figures['gap']:.2f} logits apart:",
            "",
            "| writer | reader | score |",
            "|---|---|---|",
        ]
        for row in figures["first"]:
            interval = f"{row['score']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
            lines.append(f"| `{row['writer']}` | `{row['reader']}` | {interval} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    """Measure, and write the results and the page."""
    model = interp.load_model(options.model)
    before = read_json(options.out)["tasks"] if options.out.is_file() else {}
    measured = {task: measure(task, model, options) for task in options.tasks}
    results = {
        "options": asdict(options) | {"out": str(options.out.name)},
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "tasks": {name: (before | measured)[name] for name in TASKS if name in before | measured},
    }
    write_json(options.out, json.loads(json.dumps(results, default=str)))
    write_between(PAGE, "edges", tables(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
