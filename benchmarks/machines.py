"""What a sweep over many machines costs: a formula, and its check with two local Ray workers.

``python benchmarks/machines.py`` measures, on a random model, seconds a prompt and a worker's start
in one process, predicts from them what two workers take, and measures that. It writes
``results/machines.json`` and the tables of ``docs/how-to/several-machines.md``: the check, and two
plans that follow from the same formula and from assumptions that are named.
"""

import argparse
import json
import math
import os
import pickle
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from marked import write_between
from sweep_memory import hf_model_of

from interp.commands.locate import LocateJob, locate_shard
from interp.files.documents import write_json
from interp.heads.locate import as_encoded
from interp.jobs import Shard
from interp.models import fingerprint, load_model, model_info
from interp.premises import Premises
from interp.runs.manifest import versions
from interp.runs.ray_engine import RayEngine
from interp.runs.shards import InProcess, ShardStore, cut, finish_shards
from tests.fixtures import make_word_tokenizer, planted_relation

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "machines.json"
PAGE = ROOT / "docs" / "how-to" / "several-machines.md"


@dataclass(frozen=True)
class Sweep:
    """A sweep as the formula sees it.

    Attributes:
        prompts, shard: how many, and how many together.
        workers: with a model each.
        at_once: workers that compute at the same time, at most (processors, or GPUs).
        start: seconds until a worker's first shard: process, model.
        prompt_seconds: of one worker alone.
        job_bytes, result_bytes: of a shard.
    """

    prompts: int
    shard: int
    workers: int
    at_once: int
    start: float
    prompt_seconds: float
    job_bytes: float
    result_bytes: float

    @property
    def shards(self) -> int:
        return math.ceil(self.prompts / self.shard)

    @property
    def seconds(self) -> float:
        """Start, then rounds of shards; workers that share a processor wait for each other."""
        waiting = self.workers / min(self.workers, self.at_once)
        rounds = math.ceil(self.shards / self.workers)
        return waiting * (self.start + rounds * self.shard * self.prompt_seconds)

    @property
    def bytes_moved(self) -> float:
        return self.shards * (self.job_bytes + self.result_bytes)


class Weighing:
    """An engine that adds up what goes to the workers and comes back."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.jobs, self.results = inner, 0, 0

    def run(self, work: Any, jobs: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Shard]]:
        for number, shard in self.inner.run(work, self._weighed(jobs)):
            self.results += len(pickle.dumps(shard))
            yield number, shard

    def _weighed(self, jobs: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for number, job in jobs:
            self.jobs += len(pickle.dumps(job))
            yield number, job


def measure(prompts: int, shard: int) -> dict[str, Any]:
    """One process, then two workers, on the same prompts."""
    torch.set_num_threads(1)
    relation = planted_relation()
    tokenizer = make_word_tokenizer(relation)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf_model_of(tokenizer).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        load = partial(load_model, str(folder / "model"), device="cpu")
        before = psutil.Process().memory_info().rss
        model = load()
        weights = psutil.Process().memory_info().rss - before
        some = as_encoded(model, Premises(relation, relation.facts, relation.template_names))
        encoded = some.take([index % len(some) for index in range(prompts)])
        parts = cut(range(len(encoded)), shard)

        def job(number: int) -> LocateJob:
            return LocateJob(encoded.take(parts[number]), "activation", "output")

        def sweep(kind: str, engine: Any) -> float:
            store = ShardStore(folder / kind, {"kind": "machines"}, len(parts))
            begin = time.perf_counter()
            finish_shards(store, engine, locate_shard, job=job, progress=False)
            return time.perf_counter() - begin

        alone = sweep("alone", InProcess(model))
        engine = RayEngine(
            load, identify=fingerprint, expected=model_info(model).fingerprint, workers=2
        )
        begin = time.perf_counter()
        with engine:
            first = list(engine.run(locate_shard, [(0, job(0)), (1, job(1))]))
            started = time.perf_counter() - begin
            weighing = Weighing(engine)
            together = sweep("together", weighing)
        same = all(
            (folder / "alone" / path.name).read_bytes() == path.read_bytes()
            for path in (folder / "together").iterdir()
        )
    at_once = len(os.sched_getaffinity(0))
    predicted = Sweep(
        prompts, shard, 2, at_once, 0.0, alone / prompts, weighing.jobs / len(parts),
        weighing.results / len(parts),
    )  # fmt: skip
    return {
        "prompts": prompts, "shard": shard, "processors": at_once, "alone": alone,
        "started": started, "together": together, "predicted": predicted.seconds,
        "job_bytes": predicted.job_bytes, "result_bytes": predicted.result_bytes,
        "values_bytes": sum(one.nbytes for one in first[0][1].tensors.values()),
        "same": same, "weights_mib": weights / 2**20, "versions": versions(),
    }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A sweep that nobody has run here; everything in it is an assumption but the formula."""

    name: str
    layers: int
    heads: int
    parameters: float
    bytes_per_parameter: int
    tokens: int
    tail: int
    flops: float
    gpu_gib: int
    budget_gib: int
    load_gib_per_second: float
    prompts: int
    shard: int
    workers: int

    @property
    def weights(self) -> float:
        return self.parameters * self.bytes_per_parameter

    @property
    def prompt_flops(self) -> float:
        """Exact: a head of layer l runs the tail through the layers from l on."""
        layer = self.parameters / self.layers
        return self.heads * self.layers * (self.layers + 1) / 2 * 2 * layer * self.tail

    def sweep(self, job_bytes_per_prompt: float) -> Sweep:
        results = 2 * 4 * self.layers * self.heads * self.shard
        return Sweep(
            self.prompts, self.shard, self.workers, self.workers,
            self.weights / 2**30 / self.load_gib_per_second, self.prompt_flops / self.flops,
            job_bytes_per_prompt * self.shard, results,
        )  # fmt: skip


PLANS = (
    Plan("70B, 8 GPUs of one machine", 80, 64, 70e9, 2, 52, 20, 3e14, 192, 16, 2.0, 1000, 16, 8),
    Plan("70B, 50 machines of 8 GPUs", 80, 64, 70e9, 2, 52, 20, 3e14, 192, 16, 2.0, 1000, 2, 400),
    Plan("8B, 50 machines of 1 GPU", 32, 32, 8e9, 2, 52, 20, 3e14, 80, 16, 2.0, 1000, 16, 50),
)


def check_table(found: dict[str, Any]) -> str:
    shown = ("predicted", "together")
    predicted, together = (found[name] for name in shown)
    return (
        "| | |\n|---|---|\n"
        f"| one process, {found['prompts']} prompts in shards of {found['shard']} | "
        f"{found['alone']:.1f} s |\n"
        f"| two workers, predicted | {predicted:.1f} s |\n"
        f"| two workers, measured | {together:.1f} s ({together / predicted - 1:+.0%}) |\n"
        f"| start of Ray and of two workers, with the first shards | {found['started']:.1f} s |\n"
        f"| a shard out, and back | {found['job_bytes'] / 1024:.1f} KiB, "
        f"{found['result_bytes'] / 1024:.1f} KiB (values: {found['values_bytes'] / 1024:.1f}) |\n"
        f"| the same bytes | {'yes' if found['same'] else 'no'} |\n\n"
        f"Random weights, 8 layers of 512, 8 heads, method activation, one thread a worker, "
        f"{found['processors']} processor{'s' * (found['processors'] > 1)}."
    )


def plan_table(found: dict[str, Any]) -> str:
    per_prompt = found["job_bytes"] / found["shard"]
    lines = [
        "| plan | memory of a GPU | shards, at once | seconds a prompt | start | sweep | moved |",
        "|---|---|---|---|---|---|---|",
    ]
    for plan in PLANS:
        sweep = plan.sweep(per_prompt)
        gib = plan.weights / 2**30
        busy = min(sweep.shards, sweep.workers)
        lines.append(
            f"| {plan.name} | {gib:.0f} + {plan.budget_gib} of {plan.gpu_gib} GiB | "
            f"{sweep.shards}, {busy} | {sweep.prompt_seconds:.1f} | {sweep.start:.0f} s | "
            f"{sweep.seconds / 60:.0f} min | {sweep.bytes_moved / 2**20:.0f} MiB |"
        )
    first = PLANS[0]
    return "\n".join(lines) + (
        f"\n\nAssumed: {first.prompts:,} prompts of {first.tokens} tokens, of which {first.tail} "
        f"run again; every head, exact; bfloat16; {first.flops / 1e12:.0f} TFLOP/s that a GPU "
        f"really reaches; {first.load_gib_per_second:.0f} GiB/s from the disk; one worker a GPU."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--shard", type=int, default=16)
    parser.add_argument("--page-only", action="store_true")
    options = parser.parse_args()
    if not options.page_only:
        write_json(RESULTS, measure(options.prompts, options.shard))
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_between(PAGE, "check", check_table(found))
    write_between(PAGE, "plans", plan_table(found))
    print(check_table(found), plan_table(found), sep="\n\n")


if __name__ == "__main__":
    main()
