"""What belongs to one model or to one prompt: hooks that are not copied, caches not exchanged."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from interp.attached import attach
from interp.attached.prompt_text import PromptText, QuestionFrame
from interp.errors import UserError
from interp.heads import HeadSet
from interp.interventions import Constraint
from tests.attached.architectures import make
from tests.attached.test_equality import PROMPTS, SPANS, padded

HEADS = HeadSet(((0, 1), (1, 2)), "attention")
FOLDED = """{% if messages[0]['role'] == 'system' %}\
{% set first = messages[0]['content'] + '\\n\\n' %}\
{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}\
{% for turn in turns %}<start_of_turn>{{ turn['role'] }}
{{ first if loop.first else '' }}{{ turn['content'] }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
TOOLS = """{% for turn in messages %}{% if turn['role'] == 'tool' %}<|im_start|>user
<tool_response>
{{ turn['content'] }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ turn['role'] }}
{{ turn['content'] }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
QUESTION = "Why is Paris the capital of Germany?"
SYSTEM = {"role": "system", "content": "Be brief. Madrid is in Spain."}
USER = {"role": "user", "content": QUESTION}


@pytest.fixture
def hf_model(plain_tokenizer: Any) -> Any:
    return make("llama", plain_tokenizer)


@torch.no_grad()
def test_a_copy_would_not_carry_the_constraint(hf_model: Any, plain_tokenizer: Any) -> None:
    plain = hf_model(**padded("left")).logits
    handle = attach(hf_model, plain_tokenizer, HEADS, at=SPANS)
    constrained = hf_model(**padded("left")).logits
    for make_copy in (
        copy.deepcopy,
        pickle.dumps,
        lambda model: torch.save(model, io.BytesIO()),
        lambda model: copy.deepcopy(handle),
    ):
        with pytest.raises(UserError, match="would not carry the constraint"):
            make_copy(hf_model)
    assert torch.equal(hf_model(**padded("left")).logits, constrained)
    hf_model.load_state_dict(hf_model.state_dict())
    handle.detach()
    again = copy.deepcopy(hf_model)
    assert torch.equal(again(**padded("left")).logits, plain)
    assert torch.equal(hf_model(**padded("left")).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("own_cache", [True, False])
def test_two_prompts_in_turns_are_refused(
    own_cache: bool, hf_model: Any, plain_tokenizer: Any
) -> None:
    """They are of one length and batch size: only the cache tells them apart."""
    inputs = padded("left")
    step = torch.zeros(len(PROMPTS), 1, dtype=torch.long)

    def begun(model: Any) -> Any:
        given = {"past_key_values": DynamicCache()} if own_cache else {}
        return model(**inputs, use_cache=True, **given).past_key_values

    with attach(hf_model, plain_tokenizer, HEADS, at=SPANS) as model:
        first = begun(model)
        branch = copy.deepcopy(first)
        expected = model(input_ids=step, past_key_values=first).logits
        branched = model(input_ids=step, past_key_values=branch).logits
        assert torch.equal(branched, expected)  # another answer to the same prompt
        second = begun(model)
        with pytest.raises(UserError, match="one batch of prompts to its end before the next"):
            model(input_ids=step, past_key_values=first)
        assert torch.equal(model(input_ids=step, past_key_values=second).logits, expected)


@torch.no_grad()
def test_a_longer_cache_than_what_ran_is_refused(hf_model: Any, plain_tokenizer: Any) -> None:
    inputs, step = padded("left"), torch.zeros(len(PROMPTS), 1, dtype=torch.long)
    outside = hf_model(**inputs, use_cache=True).past_key_values
    hf_model(input_ids=step, past_key_values=outside)
    with attach(hf_model, plain_tokenizer, HEADS, at=SPANS) as model:
        model(**inputs)
        with pytest.raises(UserError, match="a cache from outside the constraint"):
            model(input_ids=step, past_key_values=outside)


@torch.no_grad()
def test_a_prompt_that_goes_on_from_another_is_found_anew(
    hf_model: Any, plain_tokenizer: Any
) -> None:
    """Not so in generation without a cache, which runs the whole text for every token."""
    calls: list[int] = []

    def last_token(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        calls.append(tokens.shape[1])
        return (torch.arange(tokens.shape[1]) == tokens.shape[1] - 1)[None] & mask

    ids = torch.arange(5, 13)[None]
    with attach(hf_model, plain_tokenizer, HEADS, at=last_token) as model:
        alone = model(ids).logits
        model(ids[:, :-1])
        assert torch.equal(model(ids).logits, alone)
        assert calls == [8, 7, 8]
        model.generate(ids, max_new_tokens=3, use_cache=False, do_sample=False)
        assert calls == [8, 7, 8, 8]


@torch.no_grad()
def test_values_of_another_word_serve_generation_without_a_cache(
    hf_model: Any, plain_tokenizer: Any
) -> None:
    constraint = Constraint(HeadSet(HEADS.heads, "output"), "resample")
    options = {"max_new_tokens": 4, "do_sample": False}
    with attach(hf_model, plain_tokenizer, constraint, at=SPANS) as model:
        with_cache = model.generate(**padded("left"), **options)
        without = model.generate(**padded("left"), **options, use_cache=False)
    assert torch.equal(with_cache, without)


def asked(tokenizer: Any, chat: list[dict[str, str]], system: str | None = None) -> str | None:
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    systems = () if system is None else ("Be", system)
    found = QuestionFrame(tokenizer, systems).question_in(PromptText.of(tokenizer, ids))
    return None if found is None else found.text


def test_a_system_prompt_in_the_users_turn_is_told_by_its_text(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_tokenizer, "chat_template", FOLDED)
    system = SYSTEM["content"]
    assert asked(chat_tokenizer, [SYSTEM, USER], system) == QUESTION
    assert asked(chat_tokenizer, [USER], system) == QUESTION
    assert asked(chat_tokenizer, [SYSTEM, USER]) == f"{system}\n\n{QUESTION}"
    later = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "model", "content": "Hm"}, USER]
    assert asked(chat_tokenizer, later, system) == QUESTION


def test_a_tools_answer_is_no_question(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_tokenizer, "chat_template", TOOLS)
    call = {"role": "assistant", "content": "I look it up."}
    tool = {"role": "tool", "content": "Rome: 3 million. Madrid: 3 million."}
    assert asked(chat_tokenizer, [USER, call, tool]) == QUESTION
    assert asked(chat_tokenizer, [USER, call, tool, call, tool]) == QUESTION
    assert asked(chat_tokenizer, [{"role": "user", "content": "Hi"}, call, USER]) == QUESTION
    assert asked(chat_tokenizer, [tool]) is None
