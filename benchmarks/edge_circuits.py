"""Circuits of edges on held-out pairs, and whether located heads sit on the first edges.

Two tasks on the embedded model: indirect-object identification (halves of the pairs), and
false premises of capitals (clean: the true-premise twin; corrupted: the false premise; search and
held-out parts share no subject and no template). On the search part edges are ranked by signed
score, as MIB does for CPR: by EAP-IG, by EAP, and by nodes (each edge has its writer's score, the
sum of EAP-IG over the writer's edges). The circuits of the first edges run on the held-out part,
beside random orders of all edges.

For false premises, heads are located as `interp locate` does, on the search part. Counted is how
often the first edges (absolute EAP-IG score) begin or end at a located head, beside sets of heads
drawn at random with as many in each layer; once for edges scored on the search part, and once for
edges scored on the held-out part.

    python benchmarks/edge_circuits.py                 # both tasks
    python benchmarks/edge_circuits.py --tasks ioi     # one; the other stays as it was

Writes benchmarks/results/edge_circuits.json, and its tables into docs/edges.md.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from head_sweep import Pairs
from marked import write_between

import interp
from interp.files.documents import read_json, write_json
from interp.heads.locate import as_encoded
from interp.patching import (
    EdgeEffects,
    LogitDifference,
    edge_faithfulness,
    patch_edges,
    stability,
)
from interp.patching.edges.circuit_of_edges import nodes_of
from interp.premises.encode import EncodedPremises
from interp.runs.manifest import versions
from interp.tasks import encode_pairs, ioi_pairs

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "edges.md"
TASKS = ("ioi", "capitals")
DRAWS = 10_000


@dataclass(frozen=True)
class Options:
    """Size of the experiment."""

    model: str = "smollm2-135m"
    tasks: tuple[str, ...] = TASKS
    search: int = 16
    """Pairs on which edges are scored."""
    held_out: int = 16
    """Pairs on which circuits run."""
    steps: int = 5
    """Of EAP-IG."""
    n_random: int = 2
    """Random orders of all edges."""
    edges: int = 200
    """First edges, for stability and for the located heads."""
    heads: int = 10
    """Located heads."""
    facts: int = 40
    """Known facts with which heads are located."""
    memory_mib: int = 1024
    seed: int = 0
    out: Path = ROOT / "benchmarks" / "results" / "edge_circuits.json"


@dataclass(frozen=True)
class Part:
    """Pairs, and what is resampled together."""

    pairs: Pairs
    groups: tuple[str, ...]

    @property
    def given(self) -> tuple[Any, ...]:
        """Clean prompts, corrupted prompts and the metric."""
        return self.pairs.clean, self.pairs.corrupted, self.pairs.metric


def ioi_parts(model: Any, options: Options) -> tuple[Part, Part]:
    """Pairs to search, and others."""
    count = options.search + options.held_out
    pairs = ioi_pairs(count, tokenizer=model.tokenizer, seed=options.seed)
    encoded = encode_pairs(model.tokenizer, pairs)

    def part(numbers: range) -> Part:
        some = encoded.take(numbers)
        return Part(Pairs(some.clean, some.corrupted, some.metric), some.groups)

    return part(range(options.search)), part(range(options.search, count))


def premise_part(encoded: EncodedPremises, count: int) -> Part:
    """One question a subject, of those whose twin is as long; templates take turns."""
    clean, corrupted = encoded.batch("twin"), encoded.batch("false")
    same = (clean.mask.sum(1) == corrupted.mask.sum(1)).tolist()
    templates = list(dict.fromkeys(encoded.templates))
    chosen: dict[str, int] = {}
    for index, subject in enumerate(encoded.subjects):
        wanted = templates[len(chosen) % len(templates)]
        if same[index] and subject not in chosen and encoded.templates[index] == wanted:
            chosen[subject] = index
    rows = list(chosen.values())[:count]
    metric = LogitDifference(encoded.true_tokens[rows], encoded.false_tokens[rows])
    groups = tuple(encoded.subjects[row] for row in rows)
    return Part(Pairs(clean.take(rows), corrupted.take(rows), metric), groups)


def by_nodes(scores: EdgeEffects) -> EdgeEffects:
    """Each edge with its writer's score: the sum over the writer's edges."""
    sums = scores.values.nansum(dim=2, keepdim=True).expand_as(scores.values)
    return replace(scores, values=sums.masked_fill(scores.values.isnan(), torch.nan))


def curves(
    model: Any, rankings: dict[str, EdgeEffects], part: Part, options: Options
) -> dict[str, Any]:
    """CPR and faithfulness of every ranking on a part, and of random orders."""
    found: dict[str, Any] = {}
    shared: dict[str, Any] = {"groups": part.groups, "by": "signed", "progress": False}
    shared |= {"budget": options.memory_mib * 2**20, "seed": options.seed}
    for name, scores in rankings.items():
        n_random = options.n_random if not found else 0
        curve = edge_faithfulness(model, *part.given, scores=scores, n_random=n_random, **shared)
        table = curve.to_dataframe()
        found[name] = {"cpr": list(curve.cpr), "curve": table.to_dict("records")}
        if n_random:
            found["random"] = {
                "cpr": curve.random_cpr.tolist(),
                "curves": curve.random_curves.tolist(),
            }
            found["n"] = len(curve.clean)
            found["gap"] = float((curve.clean - curve.corrupted).mean())
        print(name, found[name]["cpr"], flush=True)
    return found


def at_heads(scores: EdgeEffects, n: int) -> np.ndarray:
    """How many of the first ``n`` edges begin or end at each head [layer head]."""
    graph = scores.graph
    counts = np.zeros((graph.n_layers, graph.n_heads), dtype=int)
    for writer, reader in graph.named(scores.order()[:n]):
        for node in {writer, *nodes_of(graph, reader)}:
            if node.startswith("a"):
                layer, head = node[1:].split(".h")
                counts[int(layer), int(head)] += 1
    return counts


def overlap(scores: EdgeEffects, heads: list[tuple[int, int]], options: Options) -> dict[str, Any]:
    """Edges at located heads, beside heads drawn with as many in each layer."""
    counts = at_heads(scores, options.edges)
    of_layer: dict[int, int] = {}
    for layer, _ in heads:
        of_layer[layer] = of_layer.get(layer, 0) + 1
    generator = np.random.default_rng(options.seed)
    drawn = np.zeros(DRAWS, dtype=int)
    for layer, size in of_layer.items():
        order = generator.permuted(np.tile(counts[layer], (DRAWS, 1)), axis=1)
        drawn += order[:, :size].sum(axis=1)
    seen = int(sum(counts[head] for head in heads))
    return {
        "edges": options.edges,
        "at_located": seen,
        "random_mean": float(drawn.mean()),
        "random_95": float(np.percentile(drawn, 95)),
        "p": float((1 + (drawn >= seen).sum()) / (1 + DRAWS)),
        "located_on_an_edge": int(sum(counts[head] > 0 for head in heads)),
    }


def scored(model: Any, part: Part, options: Options, method: str) -> EdgeEffects:
    """The scores of all edges on a part."""
    begin = time.perf_counter()
    found = patch_edges(
        model,
        *part.given,
        method=method,
        steps=options.steps,
        groups=part.groups,
        budget=options.memory_mib * 2**20,
        progress=False,
    )
    print(method, f"{time.perf_counter() - begin:.0f} s", flush=True)
    return found


def measure(task: str, model: Any, options: Options) -> dict[str, Any]:
    """All figures of a task."""
    figures: dict[str, Any] = {}
    located: list[tuple[int, int]] = []
    if task == "ioi":
        search, held_out = ioi_parts(model, options)
    else:
        premises = interp.filter_known(model, interp.load_premises("capitals"), progress=False)
        parts = premises.split(seed=options.seed)
        search, held_out = (
            premise_part(as_encoded(model, part), size)
            for part, size in ((parts.search, options.search), (parts.held_out, options.held_out))
        )
        few = as_encoded(model, parts.search)
        few = few.take(range(min(len(few), options.facts)))
        effects = interp.locate_heads(model, few, method="attribution", progress=False)
        located = list(effects.select(count=options.heads))
        figures["located"] = {"heads": located, "n": len(few)}
        print("located", located, flush=True)
    eap_ig = scored(model, search, options, "eap-ig")
    if located:
        there = scored(model, held_out, options, "eap-ig")
        figures["overlap"] = {
            name: overlap(scores, located, options)
            for name, scores in (("search", eap_ig), ("held out", there))
        }
        print(figures["overlap"], flush=True)
    stable = stability(eap_ig, options.edges, n_resamples=200)
    figures["stability"] = {"overlap": list(stable.overlap), "chance": stable.chance}
    rankings = {
        "EAP-IG": eap_ig,
        "EAP": scored(model, search, options, "eap"),
        "nodes": by_nodes(eap_ig),
    }
    figures["n_search"] = len(search.groups)
    return figures | curves(model, rankings, held_out, options)


def interval(values: Any) -> str:
    """A value with its interval."""
    value, low, high = values
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def curve_tables(tasks: dict[str, Any]) -> str:
    """The tables of the faithfulness curves."""
    lines = [
        "| task | ranking | CPR | f at 0.5 % of the edges | at 2 % | at 10 % |",
        "|---|---|---|---|---|---|",
    ]
    shown = (0.005, 0.02, 0.1)
    for task, figures in tasks.items():
        for name in ("EAP-IG", "EAP", "nodes"):
            rows = {row["proportion"]: row for row in figures[name]["curve"]}
            cells = " | ".join(
                interval([rows[at][key] for key in ("faithfulness", "ci_low", "ci_high")])
                for at in shown
            )
            lines.append(f"| {task} | {name} | {interval(figures[name]['cpr'])} | {cells} |")
        places = [row["proportion"] for row in figures["EAP-IG"]["curve"]]
        random = np.array(figures["random"]["curves"])
        cells = " | ".join(
            ", ".join(f"{value:.2f}" for value in random[:, places.index(at)]) for at in shown
        )
        areas = ", ".join(f"{value:.2f}" for value in figures["random"]["cpr"])
        lines.append(f"| {task} | random orders | {areas} | {cells} |")
    for task, figures in tasks.items():
        stable = figures["stability"]
        lines += [
            "",
            f"{task}: edges scored on {figures['n_search']} pairs, circuits run on "
            f"{figures['n']} others, whose clean and corrupted runs lie {figures['gap']:.2f} "
            f"logits apart. Across resamples of the scored pairs the first edges overlap by "
            f"{interval(stable['overlap'])} (Jaccard index), by chance by {stable['chance']:.4f}.",
        ]
    return "\n".join(lines)


def premise_tables(figures: dict[str, Any]) -> str:
    """The table of the located heads."""
    heads = ", ".join(f"a{layer}.h{head}" for layer, head in figures["located"]["heads"])
    lines = [
        f"Heads located by attribution on {figures['located']['n']} false-premise questions of the "
        f"search part: {heads}.",
        "",
        "| edges scored on | first edges | at located heads | random heads of the same layers: "
        "mean (95th percentile) | p | located heads on any of them |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures["overlap"].items():
        lines.append(
            f"| {name} | {row['edges']} | {row['at_located']} | {row['random_mean']:.1f} "
            f"({row['random_95']:.0f}) | {row['p']:.4f} | {row['located_on_an_edge']} of "
            f"{len(figures['located']['heads'])} |"
        )
    return "\n".join(lines)


def main(options: Options) -> None:
    """Measure, and write the results and the page."""
    model = interp.load_model(options.model)
    results = read_json(options.out) if options.out.is_file() else {"tasks": {}}
    for task in options.tasks:
        results["tasks"][task] = measure(task, model, options)
        results["tasks"][task]["options"] = asdict(options) | {"out": options.out.name}
    results |= {"threads": torch.get_num_threads(), "versions": versions()}
    write_json(options.out, json.loads(json.dumps(results, default=str)))
    tasks = {task: results["tasks"][task] for task in TASKS if task in results["tasks"]}
    write_between(PAGE, "edge circuits", curve_tables(tasks))
    if "capitals" in tasks:
        write_between(PAGE, "false-premise circuits", premise_tables(tasks["capitals"]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
