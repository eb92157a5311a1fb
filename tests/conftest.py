"""Fixtures for the whole suite: tiny random models made offline, and the embedded real one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

import interp.models
from interp.models import HookedModel

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|start|>system\nYou answer questions.<|end|>\n{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

CORPUS = [
    "Why is Paris the capital of Germany? Berlin is the capital of Germany.",
    "According to my knowledge, Paris is the capital of France.",
    "What is the population of Madrid, the capital of Spain?",
    "Question: When did Rome become the capital of Italy? Answer: In the year 1871.",
    "Which country is Tokyo the capital of? Tokyo is the capital of Japan.",
    "You answer questions. system user assistant",
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    set_seed(0)


def make_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with offsets, trained on the spot; any text can be encoded."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_hf_model(
    family: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **config: Any
) -> Any:
    """A tiny random transformers model, "llama" (4 heads, 2 KV heads) or "gpt2" (4 heads).

    The weights are larger than a trained model's initial ones, so that heads have visible effects.
    """
    torch.manual_seed(seed)
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "llama":
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
        }
        return LlamaForCausalLM(LlamaConfig(**(tokens | sizes | config))).eval()
    if family == "gpt2":
        sizes = {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "initializer_range": 0.2,
        }
        return GPT2LMHeadModel(GPT2Config(**(tokens | sizes | config))).eval()
    raise ValueError(f"unknown family {family!r}: choose llama or gpt2")


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(chat=True)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(chat=False)


@pytest.fixture(scope="session")
def hf_factory() -> Callable[..., Any]:
    """``hf_factory(family, tokenizer, *, seed=0, **config)``: a tiny transformers model."""
    return make_hf_model


@pytest.fixture(scope="session")
def tiny_llama(chat_tokenizer: PreTrainedTokenizerFast) -> HookedModel:
    """3 layers, 4 query heads sharing 2 KV heads, d_model 32, with a chat template."""
    return interp.models.from_hf(
        make_hf_model("llama", chat_tokenizer), chat_tokenizer, spec="tiny-llama"
    )


@pytest.fixture(scope="session")
def tiny_gpt2(plain_tokenizer: PreTrainedTokenizerFast) -> HookedModel:
    """2 layers, 4 heads, d_model 32, no chat template."""
    return interp.models.from_hf(
        make_hf_model("gpt2", plain_tokenizer), plain_tokenizer, spec="tiny-gpt2"
    )


@pytest.fixture(scope="session")
def smollm() -> HookedModel:
    """The embedded model; if it cannot be had, its tests fail."""
    return interp.models.load_model("smollm2-135m", device="cpu")
