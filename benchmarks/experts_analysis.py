"""How long an analysis of experts takes, and whether its memory stays flat as the corpus grows.

``python benchmarks/experts_analysis.py`` routes 10,000, 50,000 and 100,000 tokens of the shipped
task sets through the embedded model with an adapter on its 60 query and value projections (8
experts, top-2; untrained, with up-projections drawn at random, unless ``--adapter`` names one), and
measures everything with all nulls. Each size runs in a process of its own, so that its peak memory
is its own; "peak" is what it took above the loaded model. Written to
``benchmarks/results/experts_analysis.json``, and as a table into docs/experts.md.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from marked import write_between

from interp.experts import LabelledCorpus, collect_routing, corpus_of, measure_specialization
from interp.moelora import MoELoRAConfig, load_adapter
from interp.moelora.data.sources import list_tasks, load_examples
from interp.moelora.training.pretrained import load_pretrained

PAGE = Path(__file__).parent.parent / "docs" / "experts.md"
SIZES = (10_000, 50_000, 100_000)
LIMITS = {"seconds_50000": 180.0, "peak_100000_over_10000": 1.2}
"""What the figures are held to: three minutes on two cores, and memory that stays."""


def adapted_model(adapter: Path | None) -> tuple[Any, Any]:
    base = load_pretrained("smollm2-135m")
    if adapter is not None:
        return load_adapter(base.model, adapter).eval(), base.tokenizer
    torch.manual_seed(0)
    config = MoELoRAConfig(
        r=4, num_experts=8, top_k=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    adapted: Any = peft.get_peft_model(base.model, config)
    for name, weight in adapted.named_parameters():
        if "moelora_B" in name:
            weight.data.normal_(std=0.01)
    return adapted.eval(), base.tokenizer


def corpus_of_size(tokenizer: Any, tokens: int) -> LabelledCorpus:
    """About so many counted tokens, every task's questions taken in turn."""
    examples = [
        one
        for source in list_tasks()
        for split in ("train", "test")
        for one in load_examples(source, split=split)  # type: ignore[arg-type]
    ]
    whole = corpus_of(examples, tokenizer)
    by_task = {task: [one for one in whole.texts if one.task == task] for task in whole.tasks}
    turns = max(map(len, by_task.values()))
    chosen, held = [], 0
    for turn in range(turns):
        for several in by_task.values():
            if turn < len(several) and held < tokens:
                chosen.append(several[turn])
                held += len(several[turn].tokens) - whole.prefix
    if held < tokens:
        raise SystemExit(f"the shipped sets have {held} tokens only")
    return LabelledCorpus(tuple(chosen), whole.prefix)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_size(tokens: int, adapter: Path | None) -> dict[str, Any]:
    adapted, tokenizer = adapted_model(adapter)
    corpus = corpus_of_size(tokenizer, tokens)
    loaded = peak_mib()
    begin = time.perf_counter()
    records, similarity = collect_routing(adapted, corpus, tokenizer)
    routed = time.perf_counter()
    found = measure_specialization(records)
    end = time.perf_counter()
    texts = found.summary().set_index(["measure", "null"])
    return {
        "tokens": records.n_tokens,
        "threads": torch.get_num_threads(),
        "texts": len(corpus.texts),
        "tasks": len(corpus.tasks),
        "projections": len(records.projections),
        "prefix": corpus.prefix,
        "seconds_routing": round(routed - begin, 1),
        "seconds_measures": round(end - routed, 1),
        "seconds": round(end - begin, 1),
        "peak_mib": round(peak_mib() - loaded, 1),
        "tables_mib": round(
            sum(one.nbytes for one in records.tables.as_dict().values()) / 2**20, 1
        ),
        "sampled": similarity.n,
        "task_information": {
            str(null): {
                "mean": round(float(row["value"]), 5),
                "null_mean": round(float(row["null_mean"]), 5),
                "significant": int(row["significant"]),
            }
            for null, row in texts.loc["task_information"].iterrows()
        },
    }


def section(result: dict[str, Any]) -> str:
    """What the script writes into docs/experts.md, between its marks."""
    lines = [
        f"smollm2-135m with {result['adapter']}; routing, and all measures with all nulls "
        "(`benchmarks/experts_analysis.py`):\n\n",
        "| tokens | texts | tasks | threads | seconds, routing | seconds, measures | together "
        "| peak, MiB |\n|---|---|---|---|---|---|---|---|\n",
    ]
    for run in result["runs"].values():
        lines.append(
            f"| {run['tokens']:,} | {run['texts']} | {run['tasks']} | {run['threads']} "
            f"| {run['seconds_routing']:.0f} "
            f"| {run['seconds_measures']:.0f} | {run['seconds']:.0f} | {run['peak_mib']:.0f} |\n"
        )
    if "peak_100000_over_10000" in result:
        lines.append(
            "\nPeak memory above the loaded model, 100,000 tokens over 10,000: "
            f"{result['peak_100000_over_10000']:.2f}.\n"
        )
    last = list(result["runs"].values())[-1]
    lines.append(
        f"\nInformation between expert and task at {last['tokens']:,} tokens, mean of the "
        "projections (nats), beside each null:\n\n"
        "| null | information | of the null | significant projections |\n|---|---|---|---|\n"
    )
    for null, one in last["task_information"].items():
        lines.append(
            f"| `{null}` | {one['mean']:.4f} | {one['null_mean']:.4f} | {one['significant']} of "
            f"{last['projections']} |\n"
        )
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--named", default="an untrained adapter", help="the adapter, in words")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/experts_analysis.json")
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--one", type=int, help="one size, as JSON to the standard output")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.one is not None:
        print(json.dumps(one_size(arguments.one, arguments.adapter)))
        return
    runs = {}
    for size in arguments.sizes:
        words = [sys.executable, __file__, "--one", str(size), "--threads", str(arguments.threads)]
        words += [] if arguments.adapter is None else ["--adapter", str(arguments.adapter)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        runs[str(size)] = json.loads(done.stdout.splitlines()[-1])
        print(size, runs[str(size)])
    result = {
        "threads": arguments.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "adapter": arguments.named,
        "runs": {size: runs[size] for size in sorted(runs, key=int)},
        "limits": LIMITS,
    }
    if {"10000", "100000"} <= set(runs):
        ratio = runs["100000"]["peak_mib"] / runs["10000"]["peak_mib"]
        result["peak_100000_over_10000"] = round(ratio, 3)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_between(arguments.page, "measured", section(result))


if __name__ == "__main__":
    main()
