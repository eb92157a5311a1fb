"""Head sweeps as other libraries' users write them, for side-by-side runs.

Each takes the heads to time by their flat index, and returns Float[prompt layer head] with NaN at
the others: the metric on the corrupted prompts with the head's output of the clean run.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformer_lens.patching
from torch import Tensor

import interp
from interp.patching import TokenBatch

Metric = Callable[[Tensor], Tensor]


@torch.no_grad()
def transformer_lens_loop(
    model: Any, clean: TokenBatch, corrupted: TokenBatch, metric: Metric, heads: list[int]
) -> Tensor:
    """TransformerLens' sweep; with all heads its public function, else its parts for some."""

    def last(logits: Tensor) -> Tensor:
        return metric(logits[:, -1])

    _, cache = model.run_with_cache(clean.tokens, names_filter=lambda name: name.endswith("hook_z"))
    n_heads = model.cfg.n_heads
    if len(heads) == model.cfg.n_layers * n_heads:
        options: dict[str, Any] = {"reduce": "none"}
        found = transformer_lens.patching.get_act_patch_attn_head_out_all_pos(
            model, corrupted.tokens, cache, last, **options
        )
        return found.values.permute(2, 0, 1)
    values = torch.full((len(corrupted), model.cfg.n_layers, n_heads), torch.nan)
    for index in heads:
        layer, head = divmod(index, n_heads)
        name = f"blocks.{layer}.attn.hook_z"

        def write(z: Tensor, hook: Any, head: int = head, name: str = name) -> Tensor:
            z[:, :, head] = cache[name][:, :, head]
            return z

        logits = model.run_with_hooks(corrupted.tokens, fwd_hooks=[(name, write)])
        values[:, layer, head] = last(logits)
    return values


def nnsight_model(spec: str) -> Any:
    """The model in nnsight, from the same folder; needs the extra ``faithlens[nnsight]``."""
    from nnsight import LanguageModel

    return LanguageModel(str(interp.models.resolve(spec)), dispatch=True, dtype=torch.float32)


@torch.no_grad()
def nnsight_loop(
    model: Any, clean: TokenBatch, corrupted: TokenBatch, metric: Metric, heads: list[int]
) -> Tensor:
    """One trace a head: the clean input of the output projection saved, then put in."""
    config = model.config
    n_heads = config.num_attention_heads
    d_head = config.hidden_size // n_heads
    values = torch.full((len(clean), config.num_hidden_layers, n_heads), torch.nan)
    sources: dict[int, Any] = {}
    layers = sorted({index // n_heads for index in heads})
    with model.trace(clean.tokens):
        for layer in layers:
            sources[layer] = model.model.layers[layer].self_attn.o_proj.input.save()
    for index in heads:
        layer, head = divmod(index, n_heads)
        part = slice(head * d_head, (head + 1) * d_head)
        with model.trace(corrupted.tokens):
            model.model.layers[layer].self_attn.o_proj.input[:, :, part] = sources[layer][
                :, :, part
            ]
            logits = model.lm_head.output[:, -1].save()
        values[:, layer, head] = metric(logits)
    return values
