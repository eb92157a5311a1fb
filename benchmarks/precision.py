"""How far effects in bfloat16 are from those in float32: ours, and TransformerLens' own loop's.

Reference: the effects of the *same* weights, which bfloat16 has rounded, in float32. The error of
an effect is its difference from that. For every head and prompt that was run:

* ``sd``: the standard deviation of the errors over heads and prompts;
* ``offset``: the largest mean error of a prompt over its heads, in standard errors of that mean.
  Three and more is an error that all of a prompt's effects have in common, as when the unedited
  run that is subtracted was computed in another way than the edited ones.

Two models: one of the shape of a Llama of 1B parameters with random weights, and the embedded one.
Attribution's errors are beside them, over all heads, and the largest difference between our
float32 sweep and TransformerLens' loop in float32.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from head_sweep import Pairs, capitals_pairs, spread_over
from measuring import timed
from peers import transformer_lens_loop
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.commands.dtype_check import widened as in_float32
from interp.patching import LogitDifference, TokenBatch, attribute_heads
from interp.patching.alignment import align
from interp.patching.patch_source import patching_edit
from interp.patching.sweep import Unit, sweep_effects

Which = Literal["embedded", "random"]


@dataclass(frozen=True)
class Settings:
    """Which models, and how many of their heads."""

    models: tuple[Which, ...] = ("embedded", "random")
    heads: int = 16
    """Heads of each model, spread over its layers, that both sides run. A CPU without instructions
    for bfloat16 takes the peer's loop a minute a head of the larger model."""
    prompts: int = 8
    tokens: int = 52
    first_difference: int = 32
    """Of the random model's prompts, which are random tokens."""
    seed: int = 0
    out: Path = Path("benchmarks/results/precision.json")


@dataclass(frozen=True)
class Errors:
    """What the module's text says, of one way to compute effects."""

    sd: float
    offset: float
    largest: float
    seconds: float


def errors_of(found: Tensor, reference: Tensor, seconds: float) -> Errors:
    """Of effects [prompt head]; heads that were not run are left out."""
    error = (found.double() - reference.double()).cpu()
    standard_error = error.std(dim=1) / error.shape[1] ** 0.5
    offset = (error.mean(dim=1).abs() / standard_error.clamp(min=1e-12)).max()
    return Errors(float(error.std()), float(offset), float(error.abs().max()), seconds)


def random_llama(settings: Settings) -> tuple[Any, Pairs]:
    """A model of a 1B Llama's shape in bfloat16, and pairs of random prompts."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=8192, vocab_size=32000,
    )  # fmt: skip
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        hf_model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    tokenizer = interp.load_model("smollm2-135m").tokenizer
    model = interp.models.from_hf(hf_model, tokenizer)
    size = (settings.prompts, settings.tokens)
    clean = torch.randint(10, config.vocab_size, size)
    corrupted = clean.clone()
    at = settings.first_difference
    corrupted[:, at] = (corrupted[:, at] + 1) % config.vocab_size
    answer, wrong = torch.randint(config.vocab_size, (2, settings.prompts))
    metric = LogitDifference(answer, wrong)
    return model, Pairs(TokenBatch.from_padded(clean), TokenBatch.from_padded(corrupted), metric)


def our_effects(model: Any, pairs: Pairs, heads: list[Unit]) -> Tensor:
    """Effects [prompt head] of our sweep."""
    with torch.no_grad():
        edit = patching_edit(
            model, pairs.clean, align(pairs.clean, pairs.corrupted, "all"), component="z"
        )
    found = sweep_effects(
        model, pairs.corrupted, edit, metrics=[pairs.metric], units=heads, progress=False
    )[0, ..., 0]  # fmt: skip
    return torch.stack([found[:, layer, head] for layer, head in heads], dim=1)


def peer_effects(model: Any, pairs: Pairs, heads: list[Unit]) -> Tensor:
    """The same of TransformerLens' loop, less its own unedited run."""
    n_heads = model.cfg.n_heads
    flat = [layer * n_heads + head for layer, head in heads]
    found = transformer_lens_loop(model, pairs.clean, pairs.corrupted, pairs.metric, flat)
    with torch.no_grad():
        bare = pairs.metric(model.run_with_hooks(pairs.corrupted.tokens, fwd_hooks=[])[:, -1])
    found = torch.stack([found[:, layer, head] for layer, head in heads], dim=1)
    return found - bare.float()[:, None]


def our_attribution(model: Any, pairs: Pairs) -> Tensor:
    """First-order effects [prompt head] of all heads."""
    with torch.no_grad():
        edit = patching_edit(
            model, pairs.clean, align(pairs.clean, pairs.corrupted, "all"), component="z"
        )
    found = attribute_heads(model, pairs.corrupted, edit, metrics=[pairs.metric], progress=False)[0]
    return found.flatten(1)


def compare(model: Any, pairs: Pairs, settings: Settings) -> dict[str, Any]:
    """All parts for one model in bfloat16."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    flat = spread_over(n_layers * n_heads, settings.heads)
    # One head further in every layer, so that not the same head of each is taken.
    heads = [(one // n_heads, (one + index) % n_heads) for index, one in enumerate(flat)]
    ways = {"ours": our_effects, "transformer_lens": peer_effects}
    runs = {}
    for dtype, context in (("bfloat16", nullcontext()), ("float32", in_float32(model))):
        with context:
            for name, way in ways.items():
                some = heads if dtype == "bfloat16" or name == "ours" else heads[::8]
                runs[name, dtype] = timed(lambda way=way, some=some: way(model, pairs, some))
            runs["attribution", dtype] = timed(lambda: our_attribution(model, pairs))
    references = dict.fromkeys(ways, runs["ours", "float32"].value)
    references["attribution"] = runs["attribution", "float32"].value
    found: dict[str, Any] = {
        "heads": len(heads),
        "prompts": len(pairs.clean),
        "tokens": pairs.clean.width,
        "effect_sd": float(references["ours"].std()),
    }
    for name, reference in references.items():
        run = runs[name, "bfloat16"]
        found[name] = asdict(errors_of(run.value, reference, run.seconds))
    difference = runs["transformer_lens", "float32"].value - references["ours"][:, ::8]
    return {**found, "float32_difference": float(difference.abs().max())}


def main(settings: Settings) -> None:
    """Print a table, and write the figures."""
    result = {}
    for which in settings.models:
        if which == "embedded":
            model = interp.load_model("smollm2-135m", dtype="bfloat16", device="cpu")
            pairs = capitals_pairs(model, settings.prompts, settings.seed)
        else:
            model, pairs = random_llama(settings)
        result[which] = found = compare(model, pairs, settings)
        print(f"{which}: {found['heads']} heads, {found['prompts']} prompts, effects' sd "
              f"{found['effect_sd']:.3g}; float32 against TransformerLens' "
              f"{found['float32_difference']:.1g}")  # fmt: skip
        for name in ("ours", "transformer_lens", "attribution"):
            one = found[name]
            print(f"  {name:17} sd {one['sd']:.3g}  offset {one['offset']:.1f} standard errors  "
                  f"largest {one['largest']:.3g}  {one['seconds']:.1f} s")  # fmt: skip
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
