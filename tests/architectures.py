"""Architectures that differ in what patching depends on, as transformers makes them."""

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)


def other_architectures(tokenizer: Any) -> dict[str, Any]:
    """Tiny random models beside llama and gpt2: biases, sliding windows, parallel blocks."""
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
    return {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2)).eval(),
        "gemma3": Gemma3ForCausalLM(gemma).eval(),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)).eval(),
    }
