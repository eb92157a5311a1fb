"""The question is found where the template put it, whatever else the text says."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.models import HookedModel, RenderedChat, render_chat

QUESTION = "Why is Paris the capital of Germany?"


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@cache
def compiled(template: str) -> jinja2.Template:
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def with_template(template: str | None) -> Any:
    """A tokenizer reduced to its chat template, rendered as transformers does."""

    def apply_chat_template(messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert template is not None
        assert not tokenize
        return compiled(template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            raise_exception=refuse,
        )

    return SimpleNamespace(chat_template=template, apply_chat_template=apply_chat_template)


def question_in(chat: RenderedChat, question: str = QUESTION) -> str:
    return chat.text[chat.question_start : chat.question_start + len(question)]


BRACKETS = (  # of the Llama 2 kind: it trims, and writes a space before the answer
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
)


def test_the_template_of_a_real_tokenizer(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = render_chat(chat_tokenizer, QUESTION, "According to")
    prompt = (
        "<|start|>system\nYou answer questions.<|end|>\n"
        f"<|start|>user\n{QUESTION}<|end|>\n<|start|>assistant\n"
    )
    assert chat.text == prompt + "According to"
    assert question_in(chat) == QUESTION
    assert chat.answer_start == len(prompt)
    assert chat.add_special_tokens is False


def test_without_an_answer_the_text_ends_where_it_would_begin(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat = render_chat(chat_tokenizer, QUESTION)
    assert chat.text.endswith("<|start|>assistant\n")
    assert chat.answer_start == len(chat.text)


def test_the_plain_frame(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert render_chat(plain_tokenizer, QUESTION) == RenderedChat(
        text=f"Question: {QUESTION}\nAnswer:",
        question_start=10,
        answer_start=len(QUESTION) + 18,
        add_special_tokens=True,
    )
    chat = render_chat(plain_tokenizer, QUESTION, "It is")
    assert chat.text == f"Question: {QUESTION}\nAnswer: It is"
    assert chat.text[chat.answer_start :] == "It is"
    chat = render_chat(plain_tokenizer, QUESTION, "It is", system="Be brief.")
    assert chat.text == f"Be brief.\n\nQuestion: {QUESTION}\nAnswer: It is"
    assert question_in(chat) == QUESTION


def test_the_question_in_the_system_prompt_is_not_the_question(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat = render_chat(chat_tokenizer, QUESTION, QUESTION, system=f"Do not answer: {QUESTION}")
    assert question_in(chat) == QUESTION
    assert chat.text[: chat.question_start].endswith("<|start|>user\n")
    assert chat.text.count(QUESTION) == 3


@pytest.mark.parametrize("question", ["assistant", "user", "You", "<|start|>", "n"])
def test_words_of_the_template_as_a_question(
    question: str, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = render_chat(chat_tokenizer, question)
    assert chat.text[: chat.question_start].endswith("<|start|>user\n")
    assert question_in(chat, question) == question


def test_a_template_that_trims() -> None:
    chat = render_chat(with_template(BRACKETS), f"  {QUESTION}\n")
    assert chat.text == f"<s>[INST] {QUESTION} [/INST]"
    assert question_in(chat, f"  {QUESTION}") == f"] {QUESTION}"  # counted from the spaces on


def test_the_space_before_an_answer_is_the_templates() -> None:
    chat = render_chat(with_template(BRACKETS), QUESTION, "It is")
    assert chat.text == f"<s>[INST] {QUESTION} [/INST] It is"
    assert chat.text[chat.answer_start :] == "It is"


def test_a_template_whose_preamble_depends_on_the_question() -> None:
    template = (
        "{{ messages[0]['content'] | length }} characters: {{ messages[0]['content'] }}\nBOT:"
    )
    chat = render_chat(with_template(template), QUESTION)
    assert question_in(chat) == QUESTION


@pytest.mark.parametrize(
    "template",
    [
        "USER: (left out) BOT:",
        "{{ messages[0]['content'] | upper }} BOT:",
        "{{ messages[0]['content'] | replace('Paris', 'Rome') }} BOT:",
    ],
)
def test_a_template_that_loses_the_question_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="does not repeat the question word for word"):
        render_chat(with_template(template), QUESTION)


def test_a_template_that_refuses_the_system_prompt() -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('No system\nrole') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    assert question_in(render_chat(with_template(template), QUESTION)) == QUESTION
    with pytest.raises(UserError, match="No system; leave the system prompt out"):
        render_chat(with_template(template), QUESTION, system="Be brief.")


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(
    question: str, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match="the question is empty"):
        render_chat(chat_tokenizer, question)


@settings(max_examples=50)
@given(
    question=st.text(min_size=1).filter(str.strip),
    answer=st.text(),
    system=st.none() | st.text(),
)
def test_any_text_is_found(question: str, answer: str, system: str | None) -> None:
    chat_ml = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    for template in (chat_ml, None):
        chat = render_chat(with_template(template), question, answer, system=system)
        assert question_in(chat, question) == question
        assert chat.text[chat.answer_start :] == answer
    trimming = chat_ml.replace("m['content']", "m['content'] | trim")
    chat = render_chat(with_template(trimming), question, answer, system=system)
    shift = len(question) - len(question.lstrip())
    kept = question.strip()
    assert chat.text[chat.question_start + shift :].startswith(kept)
    assert chat.text[: chat.question_start + shift].endswith("<|user|>")


def test_the_embedded_models_template(smollm: HookedModel) -> None:
    chat = render_chat(smollm.tokenizer, QUESTION, "According")
    assert question_in(chat) == QUESTION
    assert chat.text.startswith("<|im_start|>system\n")
    assert chat.text.endswith("<|im_start|>assistant\nAccording")
    ids = smollm.tokenizer(chat.text, add_special_tokens=chat.add_special_tokens)["input_ids"]
    assert smollm.tokenizer.decode(ids) == chat.text
    assert ids.count(smollm.tokenizer.bos_token_id) == 3  # one a turn, none put before them
