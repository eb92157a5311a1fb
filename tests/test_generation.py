"""Greedy answers: one function for hooked, transformers and PEFT models."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from interp.generation import generate_tokens, greedy_answers
from interp.models import HookedModel

PROMPTS = [[5, 9, 7, 8, 30, 31], [20, 21, 22], [40, 41, 42, 43]]


class Parrot(nn.Module):
    """Says "one", and "two" behind it to every prompt of more than two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.asked: dict[str, Any] = {}

    def generate(self, *, input_ids: Tensor, attention_mask: Tensor, **asked: Any) -> Tensor:
        self.asked = asked
        said = [
            [1, 2] if length > 2 else [1, asked["pad_token_id"]]
            for length in attention_mask.sum(dim=1).tolist()
        ]
        return torch.cat([input_ids, torch.tensor(said)], dim=1)


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """A tokenizer without a padding token, whose token 0 is a word."""
    ids = {"zero": 0, "one": 1, "two": 2, "<end>": 3}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def test_what_fills_up_a_finished_answer_is_not_read(words: PreTrainedTokenizerFast) -> None:
    assert words.pad_token_id is None
    said = greedy_answers(Parrot(), words, [[0, 1], [0, 1, 2]], progress=False)
    assert said == ["one", "one two"]


def test_the_end_token_is_handed_on_only_if_it_is_given(words: PreTrainedTokenizerFast) -> None:
    parrot = Parrot()
    greedy_answers(parrot, words, [[0]], progress=False)
    assert "eos_token_id" not in parrot.asked
    greedy_answers(parrot, words, [[0]], end=3, progress=False)
    assert parrot.asked["eos_token_id"] == parrot.asked["pad_token_id"] == 3


def test_a_hooked_model_answers_as_its_own_transformers_model(tiny_llama: HookedModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "batch_prompts": 2, "progress": False}
    hooked = generate_tokens(tiny_llama, PROMPTS, **options)
    hf_model: Any = tiny_llama.original_model
    assert hooked == greedy_answers(hf_model, tiny_llama.tokenizer, PROMPTS, **options)
    assert len(set(hooked)) > 1


def test_each_batch_has_its_context(tiny_llama: HookedModel) -> None:
    seen: list[list[int]] = []

    def within(chunk: list[int], batch: Any) -> Any:
        assert batch.mask.sum(dim=1).tolist() == [len(PROMPTS[index]) for index in chunk]
        seen.append(chunk)
        return nullcontext()

    generate_tokens(
        tiny_llama, PROMPTS, within=within, batch_prompts=2, max_new_tokens=1, progress=False
    )
    assert seen == [[1, 2], [0]]  # the short ones first: little padding
