"""The head sweep against TransformerLens' own loop, in one process: same model, prompts, threads.

Chat-formatted capitals pairs (a false-premise question and its true-premise twin, equal in
length), every head's output patched at all positions. Prints and writes the largest difference of
the values, seconds, their ratio, peak memory, and the share of the machine's own matrix-product
rate that is reached; then the same for attribution, path patching and the random-set null.
nnsight is a second peer where it is installed (``pip install faithlens[nnsight]``).

Our sweep runs before and after the peer's, and the mean of both is compared: a machine that slows
down or speeds up on the way does not favour either.
"""

import json
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro
from measuring import Timed, matrix_rate, timed
from peers import nnsight_loop, nnsight_model, transformer_lens_loop

import interp
from interp.forward.batch import first_difference
from interp.forward.partial import record_run
from interp.heads.locate import as_encoded
from interp.patching import LogitDifference, TokenBatch, attribute_heads, patch_heads, sweep_sets
from interp.patching.alignment import align
from interp.patching.patch_source import patching_edit
from interp.patching.path import patch_paths
from interp.runs.manifest import versions


@dataclass(frozen=True)
class Settings:
    """Size of the benchmark."""

    model: str = "smollm2-135m"
    prompts: int = 16
    peer_heads: int | None = None
    """Time only so many of the peer's heads, spread over layers, and scale up; None: all."""
    nnsight_heads: int = 30
    """Of the nnsight recipe, where nnsight is installed; spread over layers, and scaled up."""
    seed: int = 0
    out: Path = Path("benchmarks/results/head_sweep.json")


@dataclass(frozen=True)
class Pairs:
    """What is swept: pairs of prompts of one length, and the metric."""

    clean: TokenBatch
    corrupted: TokenBatch
    metric: LogitDifference

    @property
    def first(self) -> list[int]:
        """The first column in which a pair differs."""
        return first_difference(self.clean, self.corrupted).tolist()


def capitals_pairs(model: Any, count: int, seed: int) -> Pairs:
    """Capitals pairs of one length: twin (clean), false premise (corrupted)."""
    premises = interp.load_premises("capitals", seed=seed)
    encoded = as_encoded(model, premises)
    clean, corrupted = encoded.batch("twin"), encoded.batch("false")
    lengths = list(zip(clean.mask.sum(1).tolist(), corrupted.mask.sum(1).tolist(), strict=True))
    same = [length for length in lengths if length[0] == length[1]]
    common = max(set(same), key=same.count)
    chosen = [index for index, length in enumerate(lengths) if length == common][:count]
    metric = LogitDifference(encoded.true_tokens[chosen], encoded.false_tokens[chosen])
    return Pairs(clean.take(chosen), corrupted.take(chosen), metric)


def spread_over(count: int, wanted: int | None) -> list[int]:
    """So many of ``count`` indices, evenly spaced; all of them for None."""
    if wanted is None:
        return list(range(count))
    return list(range(count))[:: max(1, count // wanted)][:wanted]


def compare_sweeps(model: Any, pairs: Pairs, some: list[int]) -> tuple[dict[str, Any], Any]:
    """Ours, the peer's, and ours again."""
    ours = partial(patch_heads, model, pairs.clean.tokens, pairs.corrupted.tokens, pairs.metric)
    n_heads = model.cfg.n_layers * model.cfg.n_heads
    rates = [matrix_rate()]  # between the runs: a machine's rate varies
    first = timed(ours)
    rates.append(matrix_rate())
    peer = timed(
        lambda: transformer_lens_loop(model, pairs.clean, pairs.corrupted, pairs.metric, some)
    )
    rates.append(matrix_rate())
    second = timed(ours)
    known = ~peer.value.isnan()
    seconds = (first.seconds + second.seconds) / 2
    peer_seconds = peer.seconds * n_heads / len(some)
    rate = max(*rates, matrix_rate())
    flops = sweep_flops(model, pairs.corrupted.width, pairs.first)
    return {
        "largest_difference": float((first.value - peer.value)[known].abs().max()),
        "repeat_difference": float((first.value - second.value).abs().max()),
        "seconds": [first.seconds, second.seconds],
        "peer_seconds": peer_seconds,
        "peer_heads_timed": len(some),
        "ratio": peer_seconds / seconds,
        "peak_mib": max(first.mib, second.mib),
        "peer_peak_mib": peer.mib,
        "matrix_gflops": rate,
        "share_of_matrix_rate": flops / seconds / 1e9 / rate,
    }, first.value


def measure_attribution(
    model: Any, pairs: Pairs, exact: torch.Tensor, peer_seconds: float
) -> dict[str, Any]:
    """All heads from one backward pass, and how well that agrees with the exact effects."""

    def run() -> torch.Tensor:
        with torch.no_grad():
            alignment = align(pairs.clean, pairs.corrupted, "all")
            edit = patching_edit(model, pairs.clean, alignment, component="z")
        return attribute_heads(
            model, pairs.corrupted, edit, metrics=[pairs.metric], progress=False
        )[0]

    run()
    found = timed(run)
    effects = exact - pairs.metric(record_run(model, pairs.corrupted).logits)[:, None, None]
    stacked = torch.stack([found.value.mean(0).flatten(), effects.mean(0).flatten()])
    return {
        "seconds": found.seconds,
        "ratio": peer_seconds / found.seconds,
        "peak_mib": found.mib,
        "pearson_with_exact": float(torch.corrcoef(stacked)[0, 1]),
    }


def measure_paths(model: Any, pairs: Pairs, peer_seconds: float) -> dict[str, Any]:
    """Direct effects of all heads, against as many whole runs."""
    found = timed(
        lambda: patch_paths(model, pairs.clean, pairs.corrupted, pairs.metric, progress=False)
    )
    return {"seconds": found.seconds, "ratio": peer_seconds / found.seconds}


def measure_random_sets(
    model: Any, pairs: Pairs, seed: int, seconds_per_run: float
) -> dict[str, Any]:
    """Twenty random sets of three heads, against as many whole runs."""
    with torch.no_grad():
        alignment = align(pairs.clean, pairs.corrupted, "all")
        edit = patching_edit(model, pairs.clean, alignment, component="z")
    n_heads = model.cfg.n_heads
    generator = torch.Generator().manual_seed(seed)
    every = model.cfg.n_layers * n_heads
    sets = [
        [divmod(int(index), n_heads) for index in torch.randperm(every, generator=generator)[:3]]
        for _ in range(20)
    ]
    found = timed(
        lambda: sweep_sets(model, pairs.corrupted, edit, sets=sets, metrics=[pairs.metric])
    )
    ratio = seconds_per_run * len(sets) / found.seconds
    return {"sets": len(sets), "seconds": found.seconds, "ratio": ratio}


def measure_nnsight(
    spec: str, pairs: Pairs, exact: torch.Tensor, some: list[int], seconds: float
) -> dict[str, Any]:
    """nnsight's recipe for some of the heads, scaled up; ``seconds`` are those of our sweep."""
    model = nnsight_model(spec)
    loop = partial(nnsight_loop, model, pairs.clean, pairs.corrupted, pairs.metric)
    loop(some[:1])  # it starts slowly
    found: Timed = timed(lambda: loop(some))
    known = ~found.value.isnan()
    of_all = found.seconds * exact[0].numel() / len(some)
    return {
        "heads_timed": len(some),
        "seconds": of_all,
        "ratio": of_all / seconds,
        "peak_mib": found.mib,
        "largest_difference": float((exact - found.value)[known].abs().max()),
    }


def sweep_flops(model: Any, width: int, first: list[int]) -> float:
    """Matrix-product operations of one sweep done as described in ``interp.patching.sweep``."""
    cfg = model.cfg
    attention = 2 * cfg.d_model * cfg.n_heads * cfg.d_head
    attention += 2 * cfg.d_model * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    mlp = 3 * cfg.d_model * cfg.d_mlp
    start = min(first)
    layers_above = sum(cfg.n_layers - 1 - layer for layer in range(cfg.n_layers)) * cfg.n_heads
    own = cfg.n_layers * cfg.n_heads * (mlp + cfg.d_model * cfg.n_heads * cfg.d_head)
    return 2.0 * len(first) * (width - start) * (layers_above * (attention + mlp) + own)


def main(settings: Settings) -> None:
    """Run all parts, print and write the figures."""
    model = interp.load_model(settings.model, device="cpu")
    pairs = capitals_pairs(model, settings.prompts, settings.seed)
    n_heads = model.cfg.n_layers * model.cfg.n_heads
    with torch.no_grad():  # both sides warmed up alike
        model(pairs.corrupted.tokens)
        few = pairs.clean.tokens[:1], pairs.corrupted.tokens[:1]
        patch_heads(model, *few, lambda logits: logits[:, 0], progress=False)
    sweep, exact = compare_sweeps(model, pairs, spread_over(n_heads, settings.peer_heads))
    peer_seconds, seconds = sweep["peer_seconds"], sum(sweep["seconds"]) / 2
    result: dict[str, Any] = {
        "model": settings.model,
        "prompts": len(pairs.clean),
        "tokens": pairs.clean.width,
        "first_difference": pairs.first,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        **sweep,
        "attribution": measure_attribution(model, pairs, exact, peer_seconds),
        "direct_effects": measure_paths(model, pairs, peer_seconds),
        "random_sets": measure_random_sets(model, pairs, settings.seed, peer_seconds / n_heads),
    }
    if settings.nnsight_heads and find_spec("nnsight"):
        some = spread_over(n_heads, settings.nnsight_heads)
        result["nnsight"] = measure_nnsight(settings.model, pairs, exact, some, seconds)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "versions"}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings))
