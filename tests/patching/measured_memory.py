"""Writes as JSON what methods take of memory on small models, and the estimates of it.

A process of its own, because the largest resident size is the process's; run by ``test_sizes.py``
with an allocator that gives memory back at once.
"""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import interp.models
from interp.forward.partial import record_run
from interp.patching import LogitDifference, Probability, TokenBatch
from interp.patching.atp_star import atp_star_effects
from interp.patching.attribution import attribute_positions
from interp.patching.chunks import graph_demand, row_demand
from interp.patching.edits import ActivationEdit
from interp.patching.integrated_gradients import integrate_positions
from interp.patching.sweep import sweep_heads
from tests.fixtures import make_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "wide": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 2048})),
    "vocabulary": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 40_000})),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=128, n_layer=6, n_head=8)),
    "experts": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2)
    ),
}
CASES = [  # those of the models that are named as arguments, or all
    # model, method, component, prompts, tail, width, heads of a layer
    ("llama", "exact", "z", 16, 32, 32, 8),
    ("llama", "exact", "pattern", 16, 64, 64, 8),
    ("llama", "exact", "mlp_out", 64, 32, 32, 1),
    ("llama", "attribution", "z", 48, 32, 32, 8),
    ("llama", "attribution", "z", 48, 8, 192, 8),
    ("llama", "attribution", "pattern", 16, 96, 96, 8),
    ("llama", "ig", "z", 48, 32, 32, 8),
    ("llama", "atp*", "z", 48, 32, 32, 8),
    ("llama", "atp*", "k", 4, 48, 48, 4),
    ("wide", "exact", "z", 16, 32, 32, 8),
    ("wide", "attribution", "z", 24, 32, 32, 8),
    ("vocabulary", "exact", "z", 32, 8, 16, 8),
    ("vocabulary", "attribution", "z", 32, 8, 16, 8),
    ("gpt2", "exact", "z", 16, 32, 32, 8),
    ("gpt2", "attribution", "z", 24, 32, 32, 8),
    ("experts", "exact", "z", 16, 32, 32, 8),
    ("experts", "attribution", "z", 24, 32, 32, 8),
]
PLENTY = 10**12


def main() -> None:
    torch.set_num_threads(1)
    only = sys.argv[1:]
    found = []
    for name, make in MODELS.items():
        if only and name not in only:
            continue
        torch.manual_seed(0)
        model = interp.models.from_hf(make().eval(), make_tokenizer(chat=False))
        for of_model, *case in CASES:
            if of_model == name:
                asked: Any = case
                found.append({"case": [name, *case], **measured(model, *asked)})
    sys.stdout.write(json.dumps(found))


def measured(
    model: Any, method: str, component: str, prompts: int, tail: int, width: int, units: int
) -> dict[str, int]:
    """Bytes: ``estimate`` and ``largest``."""
    tokens = torch.randint(0, 384, (prompts, width))
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    at = torch.zeros(prompts, width, dtype=torch.bool)
    at[:, -tail:] = True
    with torch.no_grad():
        run = record_run(model, batch, start=width - tail, keep=(component,))
        values = run.values[component].flip(1).clone()
    del run
    edit = ActivationEdit(at, values, first=width - tail, component=component)  # type: ignore[arg-type]
    index = torch.zeros(prompts, dtype=torch.long)
    metrics = [LogitDifference(index, index + 1), Probability(index)]
    position_sets = at[None]
    if component == "k":
        position_sets = torch.eye(width, dtype=torch.bool)[-tail:, None].repeat(1, prompts, 1)
    if method == "exact":
        kept = ["z"] if component == "z" else []
        demand = row_demand(model, units, *kept, edits=[component])
    else:
        held = len(position_sets) if component == "k" else 0
        demand = graph_demand(model, "pattern" if held else component, position_sets=held)
    heads = [(0, unit) for unit in range(units)]
    options: dict[str, Any] = {"budget": PLENTY, "progress": False}

    def run_method() -> None:
        if method == "exact":
            sweep_heads(model, batch, edit, metrics=metrics, heads=heads, **options)
        elif method == "attribution":
            attribute_positions(model, batch, edit, metrics=metrics, **options)
        elif method == "ig":
            integrate_positions(model, batch, edit, metric=metrics[1], steps=1, **options)
        else:
            atp_star_effects(
                model, batch, edit, position_sets=position_sets, metric=metrics[1], **options
            )

    largest = largest_size(run_method) + values.nbytes
    one = demand(tail, width)
    estimate = prompts * (one.kept + units * one.row)
    return {"estimate": estimate, "largest": largest}


def largest_size(run: Callable[[], None]) -> int:
    """How far this process grows while ``run`` runs, in bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the largest size is counted anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    main()
