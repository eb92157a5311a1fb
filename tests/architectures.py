"""Architectures that differ in what patching depends on, as transformers makes them."""

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.devices import on_device

LLAMA_LIKE: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
"""Configurations and models whose code `interp.forward.known_code` knows."""
LLAMA_LIKE_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def other_architectures(tokenizer: Any) -> dict[str, Any]:
    """Tiny random models beside llama and gpt2.

    Biases (qwen2), norms of queries and keys (qwen3, gemma3), sliding windows in some layers
    (gemma3) or in all (mistral), parallel blocks (neox).
    """
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
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
    grouped = {**sizes, "num_key_value_heads": 2}
    made = {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**grouped)).eval(),
        "gemma3": Gemma3ForCausalLM(gemma).eval(),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)).eval(),
        "mistral": MistralForCausalLM(MistralConfig(**grouped, sliding_window=32)).eval(),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**grouped, head_dim=8)).eval(),
    }
    return {name: on_device(model) for name, model in made.items()}
