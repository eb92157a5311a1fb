"""Architectures that differ in what patching depends on, and plain full forward passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import interp.models
from interp.models import HookedModel

FAMILIES = ("llama", "gpt2", "qwen2", "gemma3", "neox")

Hook = tuple[str, Callable[[torch.Tensor, Any], torch.Tensor | None]]
FullLogits = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def families(
    plain_tokenizer: Any, tiny_llama: HookedModel, tiny_gpt2: HookedModel
) -> dict[str, HookedModel]:
    """Grouped-query attention, learned positions, biases, sliding windows, parallel blocks."""
    tokens = {
        "vocab_size": len(plain_tokenizer),
        "bos_token_id": plain_tokenizer.bos_token_id,
        "eos_token_id": plain_tokenizer.eos_token_id,
        "pad_token_id": plain_tokenizer.pad_token_id,
    }
    sizes: dict[str, Any] = tokens | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    gemma = Gemma3TextConfig(
        **sizes,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        architectures=["Gemma3ForCausalLM"],
    )
    hf_models: dict[str, Any] = {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2)),
        "gemma3": Gemma3ForCausalLM(gemma),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)),
    }
    made = {
        name: interp.models.from_hf(hf_model.eval(), plain_tokenizer, spec=name)
        for name, hf_model in hf_models.items()
    }
    return {"llama": tiny_llama, "gpt2": tiny_gpt2, **made}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, families: dict[str, HookedModel]) -> HookedModel:
    return families[request.param]


@torch.no_grad()
def run_one(model: Any, tokens: Any, hooks: Any = ()) -> torch.Tensor:
    """Last-position logits of one unpadded prompt, from one whole forward pass with hooks."""
    with model.hooks(fwd_hooks=list(hooks)):
        return model(torch.as_tensor(tokens)[None])[0, -1]


@torch.no_grad()
def outputs_of(model: Any, tokens: Any) -> list[torch.Tensor]:
    """Every layer's hook_z [pos head d_head] of one unpadded prompt."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Hook:
        def hook_function(z: torch.Tensor, hook: Any) -> None:
            seen[layer] = z[0].clone()

        return f"blocks.{layer}.attn.hook_z", hook_function

    run_one(model, tokens, [keep(layer) for layer in range(model.cfg.n_layers)])
    return [seen[layer] for layer in range(model.cfg.n_layers)]


@pytest.fixture(scope="session")
def full_logits() -> FullLogits:
    return run_one


@pytest.fixture(scope="session")
def full_outputs() -> Callable[..., list[torch.Tensor]]:
    return outputs_of
