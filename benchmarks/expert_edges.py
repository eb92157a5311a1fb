"""Edges of a MoELoRA adapter's experts on false premises of capitals.

The pairs are those of benchmarks/edge_circuits.py (clean: the true-premise twin; corrupted: the
false premise; the metric is the true less the false answer's token), on the search part's subjects
that the adapted model knows. Measured:

* by EAP, the strongest edges of experts with intervals over subjects, and which share of the
  absolute scores of all edges they have, beside their share of the number of edges;
* exactly, the first edges of EAP's ranking beside as many edges of experts drawn at random (the
  null), and Spearman's correlation of EAP with the exact effects over edges drawn at random, once
  from all edges of experts and once from the upper half of their scores;
* how much of the effect goes through experts at all: every expert's gate and output taken from the
  clean run at once, in the corrupted run.

    python benchmarks/atlas_adapter.py --base runs/float32     # or any adapter of the model
    python benchmarks/expert_edges.py --adapter runs/moelora/adapter

The same command again takes up what is there. Writes benchmarks/results/expert_edges.json, and its
table into docs/edges.md.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import yaml
from edge_circuits import PAGE, ROOT, Part, premise_part
from head_sweep import Pairs
from marked import write_between

import interp
from interp.experts import ExpertEdgeEffects, patch_expert_edges
from interp.files.documents import read_json, write_json
from interp.heads.locate import as_encoded
from interp.models import HookedModel
from interp.moelora import hooked, load_adapter
from interp.moelora.projections import projections_of
from interp.moelora.training.pretrained import load_pretrained
from interp.patching.effect_arrays import correlations
from interp.runs.manifest import versions
from interp.statistics.significance import RESOLUTION, mean_interval


@dataclass(frozen=True)
class Options:
    """Size of the experiment."""

    adapter: Path
    """The directory of a saved MoELoRA adapter of the model."""
    model: str = "smollm2-135m"
    facts: int = 48
    """Facts of which the model is asked whether it knows them."""
    pairs: int = 16
    exact_pairs: int = 6
    """The first of them, on which edges are patched exactly."""
    first: int = 10
    """First edges that are patched exactly."""
    drawn: int = 60
    """Edges drawn at random that are, from all and from the upper half."""
    shown: int = 8
    """Edges in the table."""
    memory_mib: int = 1024
    seed: int = 0
    out: Path = ROOT / "benchmarks" / "results" / "expert_edges.json"


def adapted_model(options: Options) -> HookedModel:
    """The embedded model with the adapter, hooked."""
    pretrained = load_pretrained(options.model)
    adapter = load_adapter(pretrained.model, options.adapter).eval()
    return hooked(adapter, pretrained.tokenizer, spec=f"{options.model} with MoELoRA")


def pairs_of(model: HookedModel, options: Options) -> Part:
    """Pairs of the search part, one a subject."""
    premises = interp.load_premises("capitals", limit=options.facts, seed=options.seed)
    known = interp.filter_known(model, premises, progress=False)
    search = known.split(seed=options.seed).search
    print(f"{len(search.facts)} known facts to search", flush=True)
    return premise_part(as_encoded(model, search), options.pairs)


def first_of(part: Part, count: int) -> Part:
    """The first pairs of a part."""
    rows = list(range(min(count, len(part.groups))))
    pairs = part.pairs
    metric = pairs.metric.take(torch.tensor(rows))
    return Part(
        Pairs(pairs.clean.take(rows), pairs.corrupted.take(rows), metric), part.groups[: len(rows)]
    )


def scored(model: HookedModel, part: Part, options: Options, **how: Any) -> ExpertEdgeEffects:
    """Scores of edges on some pairs."""
    return patch_expert_edges(
        model,
        *part.given,
        groups=part.groups,
        budget=options.memory_mib * 2**20,
        progress=False,
        **how,
    )


def attribution(model: HookedModel, part: Part, options: Options) -> dict[str, Any]:
    """The strongest edges, and the experts' share of all scores, by EAP."""
    begin = time.perf_counter()
    every = scored(model, part, options, all_edges=True)
    seconds = time.perf_counter() - begin
    into_experts = of_experts(every)
    known = set(into_experts.edges)
    table = into_experts.to_dataframe(options.shown)
    sizes = every.values.abs().double()
    inside = np.array([edge in known for edge in every.edges])
    shares = (sizes[:, torch.from_numpy(inside)].sum(dim=1) / sizes.sum(dim=1)).numpy()
    return {
        "n": len(every),
        "seconds": seconds,
        "gap": float((every.clean - every.corrupted).mean()),
        "edges": len(every.edges),
        "edges_of_experts": len(into_experts.edges),
        "share": list(mean_interval(shares, part.groups, seed=options.seed)),
        "first": table.to_dict("records"),
        "left_out": list(every.left_out),
    }


def of_experts(scores: ExpertEdgeEffects) -> ExpertEdgeEffects:
    """The edges that begin or end at an expert."""
    places = [number for number, edge in enumerate(scores.edges) if ".e" in "".join(edge)]
    edges = tuple(scores.edges[place] for place in places)
    return replace(scores, values=scores.values[:, places], edges=edges)


def exact(model: HookedModel, part: Part, options: Options) -> dict[str, Any]:
    """Exact effects of the first edges and of drawn ones, beside their estimates."""
    estimate = scored(model, part, options)
    order = np.argsort(-np.abs(estimate.mean), kind="stable")
    generator = np.random.default_rng(options.seed)
    drawn = {
        "all": generator.choice(order, options.drawn, replace=False),
        "upper half": generator.choice(order[: len(order) // 2], options.drawn, replace=False),
    }
    sets = {"first": order[: options.first], **drawn}
    places = sorted({int(place) for some in sets.values() for place in some})
    begin = time.perf_counter()
    edges = [estimate.edges[place] for place in places]
    found = scored(model, part, options, method="exact", edges=edges)
    figures: dict[str, Any] = {"n": len(found), "seconds": time.perf_counter() - begin}
    figures["edges"] = len(edges)
    column = {place: number for number, place in enumerate(places)}
    for name, some in sets.items():
        values = found.values[:, [column[int(place)] for place in some]]
        sizes = values.abs().double().mean(dim=1).numpy()
        effects, estimates = found.mean[[column[int(place)] for place in some]], estimate.mean[some]
        figures[name] = {
            "edges": len(some),
            "size": list(mean_interval(sizes, part.groups, seed=options.seed)),
            "same_sign": float((np.sign(effects) == np.sign(estimates)).mean()),
            "spearman": correlations(effects, estimates)[1],
        }
    return figures


@torch.no_grad()
def together(model: HookedModel, part: Part, options: Options) -> dict[str, Any]:
    """The effect of all experts' gates and outputs from the clean run."""
    points = [name for some in projections_of(model) for name in (some.gate, some.expert_out)]
    effects, gaps = [], []
    for row in range(len(part.groups)):
        of_pair = part.pairs.metric.take(torch.tensor([row]))
        clean, corrupted = (
            batch.take([row]).tokens for batch in (part.pairs.clean, part.pairs.corrupted)
        )
        seen: dict[str, torch.Tensor] = {}

        def keep(value: torch.Tensor, hook: Any, seen: Any = seen) -> None:
            seen[hook.name] = value

        def put(value: torch.Tensor, hook: Any, seen: Any = seen) -> torch.Tensor:
            return seen[hook.name]

        def measured(tokens: torch.Tensor, function: Any, of_pair: Any = of_pair) -> float:
            hooks = [(point, function) for point in points] if function else []
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
            return float(of_pair(logits[:, -1].float()))

        in_clean, in_corrupted = measured(clean, keep), measured(corrupted, None)
        effects.append(measured(corrupted, put) - in_corrupted)
        gaps.append(in_clean - in_corrupted)
    effect = mean_interval(np.array(effects), part.groups, seed=options.seed)
    return {"n": len(effects), "effect": list(effect), "gap": float(np.mean(gaps))}


def interval(values: Any, digits: int = 3) -> str:
    """A value with its interval."""
    value, low, high = values
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(results: dict[str, Any]) -> str:
    """The figures as text of the page."""
    by_eap, by_patch = results["attribution"], results["exact"]
    all_at_once = results["together"]
    share = by_eap["edges_of_experts"] / by_eap["edges"]
    lines = ["| writer | reader | score |", "|---|---|---|"]
    for row in by_eap["first"]:
        score = interval([row["score"], row["ci_low"], row["ci_high"]], 4)
        lines.append(f"| `{row['writer']}` | `{row['reader']}` | {score} |")
    lines += [
        "",
        f"The largest edges of experts by EAP on {by_eap['n']} pairs, whose clean and corrupted "
        f"runs lie {by_eap['gap']:.2f} logits apart, with {results['adapter']}. Of the absolute "
        f"scores of all {by_eap['edges']:,} edges, the {by_eap['edges_of_experts']:,} edges of "
        f"experts have {interval([100 * value for value in by_eap['share']], 2)} %; they are "
        f"{100 * share:.0f} % of the edges.",
        "",
        "| edges of experts | n | mean absolute exact effect | same sign as EAP | "
        "Spearman with EAP |",
        "|---|---|---|---|---|",
    ]
    names = {
        "first": "the first by EAP",
        "all": "drawn from all",
        "upper half": "drawn from the upper half",
    }
    for name, words in names.items():
        row = by_patch[name]
        lines.append(
            f"| {words} | {row['edges']} | {interval(row['size'], 4)} | {row['same_sign']:.2f} | "
            f"{row['spearman']:.2f} |"
        )
    lines += [
        "",
        f"Patched exactly on {by_patch['n']} pairs; intervals resample subjects. An effect below "
        f"{RESOLUTION:g} logits is within float32's rounding.",
        "",
        f"All experts' gates and outputs at once from the clean run, on {all_at_once['n']} pairs: "
        f"{interval(all_at_once['effect'])} logits, of {all_at_once['gap']:.2f} between the runs.",
    ]
    return "\n".join(lines)


def described(adapter: Path) -> str:
    """The adapter in words."""
    settings = read_json(adapter / "adapter_config.json")
    targets = ", ".join(f"`{name}`" for name in sorted(settings["target_modules"]))
    words = (
        f"an adapter of {settings['num_experts']} experts of rank {settings['r']} on {targets}, "
        f"{settings['top_k']} for each token"
    )
    config = adapter.parent / "config.yaml"
    if not config.is_file():
        return words
    training = yaml.safe_load(config.read_text(encoding="utf-8"))
    return f"{words}, trained for {training['steps']} steps of {training['batch']}"


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write what there is so far."""
    write_json(path, json.loads(json.dumps(results, default=str)))


def main(options: Options) -> None:
    """Measure what is not there yet, and write the results and the page."""
    chosen = asdict(options) | {"out": options.out.name, "adapter": options.adapter.name}
    settings = json.loads(json.dumps(chosen, default=str))
    results = read_json(options.out) if options.out.is_file() else {}
    if results.get("options") != settings:
        results = {"options": settings}
    results["adapter"] = described(options.adapter)
    stages = {
        "attribution": (attribution, options.pairs),
        "exact": (exact, options.exact_pairs),
        "together": (together, options.pairs),
    }
    if any(name not in results for name in stages):
        model = adapted_model(options)
        part = pairs_of(model, options)
        for name, (stage, count) in stages.items():
            if name not in results:
                results[name] = stage(model, first_of(part, count), options)
                results |= {"threads": torch.get_num_threads(), "versions": versions()}
                write_results(options.out, results)
                print(name, json.dumps(results[name], default=str)[:2000], flush=True)
    write_results(options.out, results)
    write_between(PAGE, "expert edges", table(results))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
