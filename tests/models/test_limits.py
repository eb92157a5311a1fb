"""Prompts beyond a table of positions and tokens beyond a vocabulary are refused everywhere."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, OPTConfig, OPTForCausalLM

from interp.errors import UserError
from interp.forward.generate import generate_tokens
from interp.forward.partial import record_run
from interp.models import from_hf
from interp.models.limits import (
    check_prompts,
    positions_of_model,
    room_for_answer,
    vocabulary_size,
)
from interp.moelora.data.encoding import EncodedExample
from interp.moelora.training.scoring import answer_losses
from interp.patching import LogitDifference, TokenBatch, last_logits, patch
from probes.activation_reader import TokensToRead, read_activations


class Counted(nn.Module):
    """A model of parts with given names, as far as limits look at it."""

    def __init__(self, parts: dict[str, nn.Module], **config: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.config = SimpleNamespace(**config)

    def forward(self, input_ids: Any, position_ids: Any = None) -> None: ...


def opt(vocabulary: int, positions: int) -> Any:
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=1,
            ffn_dim=32,
            num_attention_heads=2,
            max_position_embeddings=positions,
            word_embed_proj_dim=16,
        )
    ).eval()


def test_tables_by_hand() -> None:
    assert positions_of_model(Counted({"wpe": nn.Embedding(7, 2)})).table == 7
    assert positions_of_model(Counted({"wte": nn.Embedding(7, 2)})).table is None
    assert positions_of_model(Counted({"post_norm": nn.Linear(3, 7)})).table is None
    assert positions_of_model(Counted({"rel_pos_bias": nn.Embedding(7, 2)})).table is None
    sinusoids = nn.Module()
    sinusoids.register_buffer("embed_positions", torch.zeros(5, 4))
    assert positions_of_model(Counted({"attn": sinusoids})).table == 5
    behind_padding: Any = nn.Embedding(9, 2)
    behind_padding.offset = 2
    assert positions_of_model(Counted({"embed_positions": behind_padding})).table == 7
    alibi = Counted({}, attn_config=SimpleNamespace(alibi=True), max_seq_len=11)
    assert positions_of_model(alibi).table == 11


def test_positions_of_images_limit_no_text() -> None:
    text: dict[str, Any] = {"model_type": "llama", "vocab_size": 50, "hidden_size": 16}
    text |= {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    image: dict[str, Any] = {"model_type": "clip_vision_model", "hidden_size": 8}
    image |= {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    image |= {"image_size": 28, "patch_size": 14}
    config = LlavaConfig(
        text_config={**text, "max_position_embeddings": 64},
        vision_config=image,
        image_token_index=49,
    )
    model = LlavaForConditionalGeneration(config)
    assert any("position_embedding" in name for name, _ in model.named_parameters())
    found = positions_of_model(model)
    assert (found.table, found.trained) == (None, 64)
    config.text_config = OPTConfig(
        vocab_size=50,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        word_embed_proj_dim=16,
    )
    assert positions_of_model(LlavaForConditionalGeneration(config)).table == 8


@pytest.mark.parametrize("length", [8, 9])
def test_the_table_ends_where_the_model_fails(length: int) -> None:
    model = opt(20, 8)
    tokens = torch.ones(1, length, dtype=torch.long)
    if length <= 8:
        check_prompts(model, tokens.tolist())
        model(input_ids=tokens)
    else:
        with pytest.raises(IndexError):
            model(input_ids=tokens)
        with pytest.raises(UserError, match="a prompt of 9 tokens is longer than the 8 positions"):
            check_prompts(model, tokens.tolist())


def test_rotary_positions_go_on_and_are_told_once(
    hf_factory: Callable[..., Any], plain_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = hf_factory("llama", plain_tokenizer, max_position_embeddings=8)
    with caplog.at_level(logging.WARNING):
        check_prompts(model, [[1] * 8])
        assert not caplog.records
        check_prompts(model, [[1] * 9])
        check_prompts(model, [[1] * 9])
    assert len(caplog.records) == 1
    assert "longer than the 8 positions" in caplog.text


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # of PEFT
def test_an_adapter_changes_nothing(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> None:
    base = hf_factory("gpt2", plain_tokenizer, n_positions=24)
    own = positions_of_model(base), vocabulary_size(base)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    assert (positions_of_model(adapted), vocabulary_size(adapted)) == own


def test_a_resized_vocabulary_counts(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> None:
    model = hf_factory("gpt2", plain_tokenizer)
    beyond = [[len(plain_tokenizer) + 1]]
    with pytest.raises(UserError, match="is not in the model's vocabulary of"):
        check_prompts(model, beyond)
    model.resize_token_embeddings(len(plain_tokenizer) + 2)
    check_prompts(model, beyond)
    with pytest.raises(UserError, match="token -1 is not in the model's vocabulary"):
        check_prompts(model, [[-1]])


def test_room_by_hand(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> None:
    model = hf_factory("gpt2", plain_tokenizer, n_positions=24)
    rooms = [room_for_answer(model, length, 5) for length in (10, 20, 21, 24, 25)]
    assert rooms == [5, 5, 4, 1, 0]  # the last token is not read again


@pytest.fixture(scope="module")
def narrow(plain_tokenizer: Any) -> Any:
    """A hooked GPT-2 of 16 positions."""
    from tests.fixtures import make_hf_model

    return from_hf(make_hf_model("gpt2", plain_tokenizer, n_positions=16), plain_tokenizer)


ENTRIES: dict[str, Callable[[Any, list[int]], Any]] = {
    "last_logits": lambda model, ids: last_logits(model, TokenBatch.from_lists([ids])),
    "record_run": lambda model, ids: record_run(model, TokenBatch.from_lists([ids])),
    "patch": lambda model, ids: patch(
        model,
        TokenBatch.from_lists([ids]),
        TokenBatch.from_lists([ids]),
        LogitDifference(torch.tensor([5]), torch.tensor([6])),
        progress=False,
    ),
    "answers": lambda model, ids: generate_tokens(model, [ids], progress=False),
    "probes": lambda model, ids: list(
        read_activations(model, [TokensToRead(tuple(ids), (len(ids) - 1,))], progress=False)
    ),
    "losses": lambda model, ids: answer_losses(
        model.original_model, [EncodedExample(tuple(ids), 1)]
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_refuses(entry: str, narrow: Any) -> None:
    with pytest.raises(UserError, match="17 tokens is longer than the 16 positions"):
        ENTRIES[entry](narrow, list(range(17)))
    beyond = len(narrow.tokenizer) + 3
    with pytest.raises(UserError, match=f"token {beyond} is not in the model's vocabulary"):
        ENTRIES[entry](narrow, [1, 2, beyond])


def test_an_answer_ends_with_the_table_and_hangs_on_no_other(
    narrow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [list(range(5, 5 + length)) for length in (4, 14, 15, 15)]
    together = generate_tokens(narrow, prompts, max_new_tokens=6, progress=False)
    assert "3 of 4 answers may end early" in caplog.text
    alone = [
        generate_tokens(narrow, [one], max_new_tokens=most, progress=False)[0]
        for one, most in zip(prompts, (6, 3, 2, 2), strict=True)
    ]
    assert together == alone
