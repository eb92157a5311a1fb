"""The embedded model with quantized weights, beside the same model in float32.

    python benchmarks/quantized.py

Facts that the float32 model knows are split by subject and by template, and the same split is used
for every kind of weights. For each kind, what it does is done anew: effects of all heads by
attribution and by exact patching, three heads constrained on the held-out part, a detector trained
on the search part as the gate, and greedy answers. ``nf4`` computes in float32; ``int8`` is
LLM.int8(). Writes benchmarks/results/quantized.json, and the tables between the marks of
docs/how-to/quantized.md.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from marked import write_between
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import interp
from interp.files.documents import write_json
from interp.heads import HeadEffects
from interp.premises import Split
from interp.premises.encode import EncodedPremises, encode_premises
from interp.runs.manifest import versions
from probes import train_detector

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "quantized.json"
PAGE = HERE.parent / "docs" / "how-to" / "quantized.md"
KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
TOP = 10


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "smollm2-135m"
    premises: str = "capitals"
    facts: int = 24
    """Facts that are tried, best known first."""
    exact_prompts: int = 2
    """Search prompts of the exact sweep."""
    exact_every: int = 5
    """Of so many heads one is swept exactly."""
    probe_layer: int = 18
    """The layer that the gate's detector reads."""
    kinds: tuple[str, ...] = tuple(KINDS)
    seed: int = 0
    out: Path = RESULTS
    page: Path = PAGE


def load(folder: Path, kind: str) -> Any:
    """The hooked model; its weights are quantized while transformers reads them."""
    options: dict[str, Any] = {}
    if settings := KINDS[kind]:
        options["quantization_config"] = BitsAndBytesConfig(**settings)
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return interp.models.from_hf(hf_model, AutoTokenizer.from_pretrained(folder), spec=kind)


def weight_mib(model: Any) -> tuple[float, float]:
    """MiB of all weights, and of those in the blocks; scales of quantized ones are counted."""
    hf_model, sizes = model.original_model, []
    for modules in (hf_model, hf_model.model.layers):
        tensors = {one.data_ptr(): one.nbytes for one in modules.state_dict().values()}
        sizes.append(sum(tensors.values()) / 2**20)
    return sizes[0], sizes[1]


def seconds_of(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and how long it takes."""
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def agreement(found: HeadEffects, reference: HeadEffects) -> dict[str, Any]:
    """Spearman's correlation of mean effects over heads, and how many of the top ten are shared.

    Heads that were not run are left out.
    """
    ours, theirs = (one.values.nanmean(dim=0).flatten() for one in (found, reference))
    run = ~torch.isnan(ours)
    tops = [set(one.nan_to_num(-torch.inf).topk(TOP).indices.tolist()) for one in (ours, theirs)]
    correlation: Any = spearmanr(ours[run], theirs[run])
    return {
        "heads": int(run.sum()),
        "spearman": float(correlation.statistic),
        "shared_top_ten": len(tops[0] & tops[1]),
    }


def measure(
    kind: str, folder: Path, split: Split, references: dict[str, HeadEffects], options: Options
) -> dict[str, Any]:
    """Everything for one kind of weights; ``references`` are float32's effects, or are filled."""
    model, loading = seconds_of(lambda: load(folder, kind))
    found: dict[str, Any] = {"load_seconds": loading}
    found["weights_mib"], found["block_weights_mib"] = weight_mib(model)
    encoded = encode_premises(model.tokenizer, split.search)
    few = encoded.take(list(range(0, len(encoded), len(encoded) // options.exact_prompts))).take(
        list(range(options.exact_prompts))
    )
    found["prompts"] = {"attribution": len(encoded), "exact": len(few)}
    heads = None
    for method, prompts in (("attribution", encoded), ("activation", few)):
        effects, seconds = seconds_of(lambda: locate(model, prompts, method, options))  # noqa: B023
        reference = references.setdefault(method, effects)
        found[method] = {"seconds": seconds, **agreement(effects, reference)}
        heads = heads or effects.select(count=3)
    found["heads"] = list(heads or ())
    result = interp.evaluate(
        model, split.held_out, heads=heads, random_sets=0, answers=False, progress=False
    )
    found["constraint"] = compared(result)
    detector, seconds = seconds_of(
        lambda: train_detector(
            model, [split.search], known=False, layers=[options.probe_layer], progress=False
        )
    )
    gated = interp.evaluate(
        model, split.held_out, heads=heads, random_sets=0, answers=False, gate="probe",
        detector=detector, progress=False,
    )  # fmt: skip
    found["gate"] = {"training_seconds": seconds, **compared(gated)}
    found["gate"]["detection"] = gated.to_dict().get("detection")
    found["tokens_per_second"] = speed(model, encoded)
    return found


def locate(model: Any, prompts: EncodedPremises, method: Any, options: Options) -> HeadEffects:
    """Effects at the attention site: of all heads, or exactly of heads spread over the layers."""
    some = None
    if method != "attribution":
        n_heads = model.cfg.n_heads
        every = range(0, model.cfg.n_layers * n_heads, options.exact_every)
        some = tuple(divmod(one, n_heads) for one in every)
    return interp.locate_heads(
        model, prompts, method=method, site="attention", heads=some, seed=options.seed,
        progress=False,
    )  # fmt: skip


def compared(result: Any) -> dict[str, float]:
    """Share of held-out prompts that prefer the true object; false premises and true twins."""
    return {
        "false_before": float(result.false.accuracy[0]),
        "false_after": float(result.false.accuracy[1]),
        "twins_p_true_before": float(result.twin.p_true[:, 0].mean()),
        "twins_p_true_after": float(result.twin.p_true[:, 1].mean()),
    }


def speed(model: Any, encoded: EncodedPremises) -> float:
    """Greedy tokens a second: 16 after each of eight prompts, in one batch."""
    batch = encoded.take(list(range(8))).batch("false")
    new = 16
    _, seconds = seconds_of(
        lambda: model.original_model.generate(
            input_ids=batch.tokens, attention_mask=batch.mask.long(), do_sample=False,
            min_new_tokens=new, max_new_tokens=new, pad_token_id=model.tokenizer.eos_token_id,
        )
    )  # fmt: skip
    return len(batch) * new / seconds


def main(options: Options) -> None:
    """Measure, write the JSON, write the page's table."""
    begin = time.perf_counter()
    folder = interp.models.resolve(options.model)
    premises = interp.load_premises(options.premises, limit=options.facts, seed=options.seed)
    known = interp.filter_known(load(folder, "float32"), premises, progress=False)
    split = known.split(seed=options.seed)
    results: dict[str, Any] = {
        "options": {"model": options.model, "premises": options.premises, "facts": options.facts,
                    "seed": options.seed, "threads": torch.get_num_threads()},
        "known": len(known.facts),
        "versions": versions(),
    }  # fmt: skip
    references: dict[str, HeadEffects] = {}
    for kind in options.kinds:
        results[kind] = measure(kind, folder, split, references, options)
        print(kind, json.dumps(results[kind]), flush=True)
        results["seconds"] = time.perf_counter() - begin
        write_json(options.out, json.loads(json.dumps(results)))
    if options.page.is_file():
        write_between(options.page, "quantized", table(results))


def table(results: dict[str, Any]) -> str:
    """The table of the page."""
    kinds = [kind for kind in KINDS if kind in results]
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("weights, MiB (of the blocks)",
         lambda one: f"{one['weights_mib']:.0f} ({one['block_weights_mib']:.0f})"),
        ("attribution: Spearman's correlation with float32's, over heads",
         lambda one: f"{one['attribution']['spearman']:.3f}"),
        ("attribution: of float32's top ten heads",
         lambda one: str(one["attribution"]["shared_top_ten"])),
        ("exact, one head in five: Spearman's correlation with float32's",
         lambda one: f"{one['activation']['spearman']:.3f}"),
        ("exact: of float32's top ten of these",
         lambda one: str(one["activation"]["shared_top_ten"])),
        ("top three heads by attribution",
         lambda one: ", ".join(f"L{a}H{b}" for a, b in one["heads"])),
        ("prefers the true object, unconstrained → constrained",
         lambda one: "{false_before:.2f} → {false_after:.2f}".format(**one["constraint"])),
        ("P(true object) on true twins",
         lambda one: "{twins_p_true_before:.2f} → {twins_p_true_after:.2f}".format(
             **one["constraint"])),
        ("the same with the gate: false premises",
         lambda one: "{false_before:.2f} → {false_after:.2f}".format(**one["gate"])),
        ("the same with the gate: twins",
         lambda one: "{twins_p_true_before:.2f} → {twins_p_true_after:.2f}".format(**one["gate"])),
        ("seconds, attribution", lambda one: f"{one['attribution']['seconds']:.0f}"),
        ("seconds, exact sweep", lambda one: f"{one['activation']['seconds']:.0f}"),
        ("tokens a second, eight greedy answers", lambda one: f"{one['tokens_per_second']:.0f}"),
    ]  # fmt: skip
    lines = [
        "| | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(cell(results[kind]) for kind in kinds) + " |"
            for name, cell in rows
        ),
    ]
    counts = results[kinds[0]]["prompts"]
    return "\n".join(lines) + (
        f"\n\nFalse-premise questions about {results['options']['premises']}; "
        f"{results['known']} known facts, {counts['attribution']} search prompts for attribution "
        f"and {counts['exact']} for the exact sweep, {results['options']['threads']} threads.\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
