"""Models of three kinds, and known premises, to constrain."""

from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import interp.models
from interp.models import HookedModel
from interp.premises import Premises, load_premises


@pytest.fixture(scope="module")
def premises() -> Premises:
    return load_premises("capitals", limit=4).with_templates(["why", "famous"])


@pytest.fixture(scope="module")
def sliding(plain_tokenizer: Any) -> HookedModel:
    """A window of 6 tokens in two of three layers; a decoding cache holds no more there."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(plain_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.2,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        architectures=["Gemma3ForCausalLM"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=plain_tokenizer.pad_token_id,
    )
    hf_model = Gemma3ForCausalLM(config).eval()
    return interp.models.from_hf(hf_model, plain_tokenizer, spec="sliding")


@pytest.fixture(params=["llama", "gpt2", "sliding"])
def model(
    request: pytest.FixtureRequest,
    tiny_llama: HookedModel,
    tiny_gpt2: HookedModel,
    sliding: HookedModel,
) -> HookedModel:
    return {"llama": tiny_llama, "gpt2": tiny_gpt2, "sliding": sliding}[request.param]
