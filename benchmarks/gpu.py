"""Speed and memory on a GPU, in at most six minutes of it: one JSON file.

    python benchmarks/gpu.py [--seconds 360] [--tiny] [--out benchmarks/results/gpu.json]

Models have random weights in the shapes of a 135M, a 1B and a 7B Llama.

* Exact sweep of all heads, against TransformerLens' own loop in the same process: some of its heads
  are timed and scaled up. Peak memory of each.
* Attribution of all heads.
* A MoELoRA training step against LoRA's of as many parameters, taken in turn.
* ``interp locate`` on the embedded model: its seconds, and those of it outside its sweeps.

Each part is begun only while there is time left. ``--tiny`` runs everything on tiny models, and on
a CPU where there is no GPU, to try the script.
"""

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch as replaced

import torch
from operators import TARGETS, llama, step, tokenizer
from peers import transformer_lens_loop

import interp.commands.locate
import interp.models
from interp.forward.partial import device_of
from interp.patching import LogitDifference, TokenBatch, patch, patch_heads

SHAPES: dict[str, tuple[torch.dtype, dict[str, int]]] = {
    "135M": (
        torch.float32,
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    ),
    "1B": (
        torch.bfloat16,
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    ),
    "7B": (
        torch.bfloat16,
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    ),
}  # fmt: skip
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 384}  # fmt: skip
PROMPTS, TOKENS, FIRST = 16, 52, 32
"""Prompts of a sweep, their tokens, and the first at which a pair differs."""
STEPS = {"135M": (16, 48), "1B": (8, 512)}
"""Batch and width of a training step."""


class Machine:
    """The device, its clock and its memory."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"

    def timed(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """What it returned, seconds, and the most GiB that were taken (None on a CPU)."""
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        value = run()
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return value, seconds, torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else None

    def sizes(self, shape: str) -> tuple[torch.dtype, dict[str, int]]:
        dtype, sizes = SHAPES[shape]
        return dtype, TINY if self.tiny else sizes

    def hf_model(self, shape: str) -> Any:
        dtype, sizes = self.sizes(shape)
        sizes = dict(sizes)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(self.device):
                return llama(sizes.pop("num_hidden_layers"), dtype=dtype, **sizes)
        finally:
            torch.set_default_dtype(before)

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def pairs(model: Any, vocabulary: int, prompts: int) -> tuple[TokenBatch, TokenBatch, Any]:
    """Random prompts that differ from one position on, and a metric."""
    device = device_of(model)
    clean = torch.randint(2, vocabulary, (prompts, TOKENS), device=device)
    corrupted = clean.clone()
    corrupted[:, FIRST:] = torch.randint(2, vocabulary, (prompts, TOKENS - FIRST), device=device)
    answers = torch.randint(2, vocabulary, (2, prompts), device=device)
    metric = LogitDifference(answers[0], answers[1])
    return TokenBatch.from_padded(clean), TokenBatch.from_padded(corrupted), metric


def sweep(machine: Machine, shape: str, *, peer_heads: int) -> dict[str, Any]:
    """All heads by both ways, and by attribution."""
    sizes = machine.sizes(shape)[1]
    model = interp.models.from_hf(machine.hf_model(shape), tokenizer(), spec="random")
    clean, corrupted, metric = pairs(model, sizes["vocab_size"], 2 if machine.tiny else PROMPTS)
    n_heads = sizes["num_hidden_layers"] * sizes["num_attention_heads"]
    some = list(range(n_heads))[:: max(1, n_heads // peer_heads)][:peer_heads]

    def ours() -> Any:
        return patch_heads(model, clean.tokens, corrupted.tokens, metric, progress=False)

    def attribution() -> Any:
        options: Any = {"component": "z", "method": "attribution", "progress": False}
        return patch(model, clean, corrupted, metric, **options)

    ours()
    transformer_lens_loop(model, clean, corrupted, metric, some[:1])
    values, first, memory = machine.timed(ours)
    found, peer, peer_memory = machine.timed(
        lambda: transformer_lens_loop(model, clean, corrupted, metric, some)
    )
    _, second, _ = machine.timed(ours)
    attribution()
    _, by_gradient, gradient_memory = machine.timed(attribution)
    known = ~found.isnan()
    seconds, peer_seconds = (first + second) / 2, peer * n_heads / len(some)
    return {
        "heads": n_heads,
        "seconds": [first, second],
        "gib": memory,
        "peer_seconds": peer_seconds,
        "peer_heads_timed": len(some),
        "peer_gib": peer_memory,
        "ratio": peer_seconds / seconds,
        "largest_difference": float((values.cpu() - found.cpu())[known.cpu()].abs().max()),
        "attribution_seconds": by_gradient,
        "attribution_gib": gradient_memory,
    }


def steps(machine: Machine, shape: str, *, rounds: int) -> dict[str, Any]:
    """A training step of both methods, taken in turn; AdamW is left out of both."""
    batch, width = (2, 12) if machine.tiny else STEPS[shape]
    runs = {}
    with torch.device(machine.device):
        for method in ("lora", "moelora"):
            runs[method] = step(machine.hf_model(shape), method, batch=batch, width=width)
    for _ in range(2):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gib: dict[str, float | None] = {}
    for index in range(rounds):
        for name in runs if index % 2 else reversed(runs):
            _, took, gib[name] = machine.timed(runs[name])
            seconds[name].append(took)
    ratio = median(a / b for a, b in zip(seconds["moelora"], seconds["lora"], strict=True))
    medians = {name: median(values) for name, values in seconds.items()}
    return {"targets": TARGETS, "batch": [batch, width], "seconds": medians, "gib": gib,
            "ratio": ratio}  # fmt: skip


def locate(machine: Machine, method: str) -> dict[str, Any]:
    """A search for heads on the embedded model; what it takes beside its sweeps."""
    module = interp.commands.locate
    model = interp.models.load_model("smollm2-135m", device=machine.device)
    settings = module.LocateSettings(method=method, limit=26 if machine.tiny else None, minimum=1)  # type: ignore[arg-type]
    within: list[float] = []
    shard = module.locate_shard

    def clocked(*args: Any, **kwargs: Any) -> Any:
        value, seconds, _ = machine.timed(lambda: shard(*args, **kwargs))
        within.append(seconds)
        return value

    def run(folder: str) -> Any:
        return module.locate_run(model, settings, Path(folder) / "run", progress=False)

    with tempfile.TemporaryDirectory() as folder, replaced.object(module, "locate_shard", clocked):
        _, seconds, _ = machine.timed(lambda: run(folder))
    return {"seconds": seconds, "in_sweeps": sum(within), "beside": seconds - sum(within)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-locate", action="store_true", help="leave the embedded model out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    machine = Machine(options.tiny)
    if not machine.on_gpu and not options.tiny:
        parser.error("there is no GPU: try the script with --tiny")
    begin = time.perf_counter()
    name = torch.cuda.get_device_name() if machine.on_gpu else "CPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "tiny": options.tiny}
    rounds = 3 if options.tiny else 9
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "sweep 135M": lambda: sweep(machine, "135M", peer_heads=30),
        "sweep 1B": lambda: sweep(machine, "1B", peer_heads=32),
        "sweep 7B": lambda: sweep(machine, "7B", peer_heads=32),
        "step 135M": lambda: steps(machine, "135M", rounds=rounds),
        "step 1B": lambda: steps(machine, "1B", rounds=rounds),
    }
    if not options.no_locate:
        parts["locate attribution"] = lambda: locate(machine, "attribution")
        parts["locate path"] = lambda: locate(machine, "path")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    for part, run in parts.items():
        if time.perf_counter() - begin > options.seconds:
            result[part] = "no time was left"
            continue
        try:
            result[part] = run()
        except Exception as error:  # the other parts are worth having
            result[part] = f"{type(error).__name__}: {error}"
            failed.append(part)
        machine.free()
        print(part, json.dumps(result[part]), flush=True)
        result["total_seconds"] = time.perf_counter() - begin
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
