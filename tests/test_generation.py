"""Greedy answers: one function for hooked, transformers and PEFT models."""

from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from interp.errors import UserError
from interp.forward.generate import (
    check_max_new_tokens,
    end_tokens,
    generate_tokens,
    greedy_answers,
)
from interp.inspection.uncertainty import scored_answers
from interp.models import HookedModel
from interp.runs.prompting import end_tokens as identity_end_tokens

PROMPTS = [[5, 9, 7, 8, 30, 31], [20, 21, 22], [40, 41, 42, 43]]
REPEATING = [37, 51, 345, 349, 178, 321]
"""A prompt that tiny_llama answers with "question" twice."""


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


@cache
def by_hand(
    hf_model: Any, count: int, end: int | None, prompt: tuple[int, ...] = tuple(PROMPTS[0])
) -> list[int]:
    """The likeliest token behind a prompt each time, from whole runs without a cache."""
    said: list[int] = []
    while len(said) < count and not (said and said[-1] == end):
        with torch.no_grad():
            logits = hf_model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1]
        said.append(int(logits.argmax()))
    return said


SAID_OTHERWISE: list[dict[str, Any]] = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(3, 384, 2))},
    {"begin_suppress_tokens": list(range(3, 384, 2))},
    {"bad_words_ids": [[token] for token in range(3, 384, 2)]},
    {"sequence_bias": [[[9], 50.0]]},
    {"forced_eos_token_id": 1},
    {"min_new_tokens": 8},
    {"max_length": 3, "max_new_tokens": 1},
    {"max_time": 1e-9},
    {"stop_strings": ["a", "e", "o"]},
    {"do_sample": True, "temperature": 50.0, "top_k": 3},
    {"num_beams": 3, "length_penalty": -5.0},
    {"num_return_sequences": 3, "do_sample": True},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"guidance_scale": 3.0},
    {"exponential_decay_length_penalty": [0, 50.0]},
    {"watermarking_config": {"bias": 50.0}},
    {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True},
    {"cache_implementation": "static"},
    {"prompt_lookup_num_tokens": 3},
    {"of_their_own": 1},
]

OBEYED = {
    *("repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens"),
    *("bad_words_ids", "sequence_bias", "forced_eos_token_id", "stop_strings", "do_sample"),
    *("exponential_decay_length_penalty", "watermarking_config"),
}
"""Those that change this answer by themselves."""


@pytest.mark.parametrize("more", SAID_OTHERWISE, ids=lambda more: next(iter(more)))
def test_greedy_is_the_likeliest_token_whatever_a_checkpoint_says(
    more: dict[str, Any], tiny_llama: HookedModel, transformers_twin: Any
) -> None:
    hf_model: Any = tiny_llama.original_model
    prompt, tokenizer = REPEATING, tiny_llama.tokenizer
    own = hf_model.generation_config
    right = by_hand(transformers_twin("tiny_llama"), 5, tokenizer.eos_token_id, tuple(prompt))
    text = tokenizer.decode(right, skip_special_tokens=True).strip()
    hf_model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, **more)
    try:
        said = generate_tokens(tiny_llama, [prompt], max_new_tokens=5, progress=False)
        (scored,), _ = scored_answers(tiny_llama, [prompt], max_new_tokens=5, progress=False)
        kept = hf_model.generation_config.to_dict()
    finally:
        hf_model.generation_config = own
    assert said == [text] == [scored]
    assert all(name in kept for name in more)  # the checkpoint's own came back


@pytest.mark.parametrize(
    "more",
    [more for more in SAID_OTHERWISE if next(iter(more)) in OBEYED],
    ids=lambda more: next(iter(more)),
)
def test_transformers_itself_says_something_else(
    more: dict[str, Any], tiny_llama: HookedModel, transformers_twin: Any
) -> None:
    """The control of the test above."""
    twin, tokenizer = transformers_twin("tiny_llama"), tiny_llama.tokenizer
    end = tokenizer.eos_token_id
    config = GenerationConfig(eos_token_id=end, pad_token_id=end, **{"max_new_tokens": 5, **more})
    said = twin.generate(torch.tensor([REPEATING]), generation_config=config, tokenizer=tokenizer)
    assert said[0, len(REPEATING) :].tolist() != by_hand(twin, 5, end, tuple(REPEATING))


def test_the_checkpoints_end_tokens_stay(tiny_llama: HookedModel, transformers_twin: Any) -> None:
    hf_model: Any = tiny_llama.original_model
    prompt, tokenizer = PROMPTS[0], tiny_llama.tokenizer
    own = hf_model.generation_config
    said = by_hand(transformers_twin("tiny_llama"), 8, None)
    end = said[3]
    ended = said[: said.index(end) + 1]
    hf_model.generation_config = GenerationConfig(eos_token_id=[350, end])
    try:
        for extra in (None, 351):  # another end token comes in addition
            (text,) = greedy_answers(
                hf_model, tokenizer, [prompt], end=extra, max_new_tokens=8, progress=False
            )
            assert text == tokenizer.decode(ended, skip_special_tokens=True).strip()
    finally:
        hf_model.generation_config = own


def test_end_tokens_by_hand(words: PreTrainedTokenizerFast) -> None:
    model = Parrot()
    assert end_tokens(model, words) == 3  # the tokenizer's
    model.config = torch.nn.Module()
    model.config.eos_token_id = 2  # type: ignore[assignment]
    assert end_tokens(model, words) == 2
    model.generation_config = GenerationConfig(eos_token_id=[0, 1])  # type: ignore[assignment]
    assert end_tokens(model, words) == [0, 1]
    assert end_tokens(model, words, 3) == [3, 0, 1]
    assert end_tokens(model, words, 1) == [0, 1]


@pytest.mark.parametrize("said", ["</s>", ["</s>"], [1, None], {"a": 1}, -1, True, 1.0])
def test_end_tokens_are_numbers(said: Any, words: PreTrainedTokenizerFast) -> None:
    model = Parrot()
    model.generation_config = SimpleNamespace(eos_token_id=said)  # type: ignore[assignment]
    with pytest.raises(UserError, match="eos_token_id of the model is a token's number"):
        end_tokens(model, words)
    with pytest.raises(UserError, match="eos_token_id of the model is a token's number"):
        identity_end_tokens(model)


def test_entries_for_generation_on_the_models_config_are_left_out(
    tiny_llama: HookedModel, transformers_twin: Any
) -> None:
    hf_model: Any = tiny_llama.original_model
    tokenizer = tiny_llama.tokenizer
    right = by_hand(transformers_twin("tiny_llama"), 6, tokenizer.eos_token_id)
    text = tokenizer.decode(right, skip_special_tokens=True).strip()
    hf_model.config.repetition_penalty = 1.5
    try:
        said = generate_tokens(tiny_llama, [PROMPTS[0]], max_new_tokens=6, progress=False)
        assert hf_model.config.repetition_penalty == 1.5
    finally:
        del hf_model.config.repetition_penalty
    assert said == [text]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # of PEFT
def test_a_peft_model_is_greedy_too(hf_factory: Any, chat_tokenizer: Any) -> None:
    base = hf_factory("llama", chat_tokenizer)
    adapted: Any = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    right = greedy_answers(adapted, chat_tokenizer, PROMPTS, max_new_tokens=5, progress=False)
    for holder in (base, adapted):
        holder.generation_config = GenerationConfig(eos_token_id=1, no_repeat_ngram_size=1)
    said = greedy_answers(adapted, chat_tokenizer, PROMPTS, max_new_tokens=5, progress=False)
    assert said == right
    assert base.generation_config.no_repeat_ngram_size == 1


@pytest.mark.parametrize("count", [-1, 1.5, True, None])
def test_a_count_that_is_none(count: Any) -> None:
    with pytest.raises(UserError, match="max_new_tokens is a whole number"):
        check_max_new_tokens(count)
