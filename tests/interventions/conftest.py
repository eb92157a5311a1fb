"""Models of three kinds, one with experts, and known premises, to constrain."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import interp.models
from interp.models import HookedModel
from interp.models.quiet import quiet_libraries
from interp.moelora import MoELoRAConfig, hooked
from interp.premises import Premises, load_premises
from tests.devices import on_device


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
    return interp.models.from_hf(on_device(hf_model), plain_tokenizer, spec="sliding")


@pytest.fixture(params=["llama", "gpt2", "sliding"])
def model(
    request: pytest.FixtureRequest,
    tiny_llama: HookedModel,
    tiny_gpt2: HookedModel,
    sliding: HookedModel,
) -> HookedModel:
    return {"llama": tiny_llama, "gpt2": tiny_gpt2, "sliding": sliding}[request.param]


def make_adapted(hf_factory: Callable[..., Any], tokenizer: Any, **config: Any) -> Any:
    """A tiny PEFT model whose four experts a projection add something."""
    base = hf_factory("llama", tokenizer)
    settings: dict[str, Any] = {
        "r": 2,
        "num_experts": 4,
        "top_k": 2,
        "lora_alpha": 4,
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    torch.manual_seed(0)
    with quiet_libraries():  # PEFT asks transformers for a name that it will drop
        adapted = peft.get_peft_model(base, MoELoRAConfig(**(settings | config)))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "moelora_B" in name:
                parameter.normal_(std=0.3)
    return adapted.eval()


@pytest.fixture
def adapted(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> Any:
    """A PEFT model of one's own, whose weights may be changed."""
    return make_adapted(hf_factory, chat_tokenizer)


@pytest.fixture(scope="session")
def experts_model(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> HookedModel:
    """The same model, hooked: experts on q, v and the MLP's way out of three layers."""
    return hooked(make_adapted(hf_factory, chat_tokenizer), chat_tokenizer)
