"""An answer stands where its template puts it, or behind a closed thought."""

from typing import Any

import pytest

from interp.models import render_chat
from interp.models.answer_place import open_thought
from interp.moelora.data.encoding import encode_example, encode_prompt
from interp.moelora.data.examples import Example
from tests.models.test_chat import with_template

USER = "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}[/U]"
ASKED = "{% endif %}{% endfor %}{% if add_generation_prompt %}"

# Prompt for an answer; what stands before one of the conversation so far; what is right.
SHAPES = {
    "nothing between": ("[A]", "[A]", "[U]Why?[/U][A]"),
    "white space": ("[A]", "[A] ", "[U]Why?[/U][A] "),
    "a closed thought": ("[A]", "[A]<think></think>", "[U]Why?[/U][A]<think></think>"),
    "a channel": ("[A]", "[A]<final>", "[U]Why?[/U][A]<final>"),
    "an open thought": ("[A]<think>", "[A]", "[U]Why?[/U][A]<think>\n</think>\n\n"),
    "closed by itself": (
        "[A]<think>",
        "[A]<think>-</think>",
        "[U]Why?[/U][A]<think>-</think>",
    ),
    "open in both": ("[A][THINK]", "[A][THINK]", "[U]Why?[/U][A][THINK]\n[/THINK]\n\n"),
    "another channel": ("[A]<analysis>", "[A]<final>", "[U]Why?[/U][A]<final>"),
}


def template_of(asked: str, own: str) -> str:
    return f"{USER}{{% else %}}{own}{{{{ m.content }}}}[/A]{ASKED}{asked}{{% endif %}}"


@pytest.mark.parametrize("shape", SHAPES)
def test_by_hand(shape: str) -> None:
    asked, own, front = SHAPES[shape]
    tokenizer = with_template(template_of(asked, own))
    bare = render_chat(tokenizer, "Why?")
    assert bare.text == f"[U]Why?[/U]{asked}"
    said = render_chat(tokenizer, "Why?", "Because")
    assert said.text == f"{front}Because"
    assert said.text[said.answer_start :] == "Because"
    assert said.text[said.question_start :].startswith("Why?")


def test_a_thought_is_opened_by_the_template_and_not_in_a_turn() -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% if m.role == 'user' %} Begin with <think> please.{% endif %}[/]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    said = render_chat(with_template(template), "Why?", "Because")
    assert said.text == "[user]Why? Begin with <think> please.[/][assistant]Because"
    thinking = template.replace("[assistant]{%", "[assistant]<think>{%")
    said = render_chat(with_template(thinking), "Why?", "Because")
    front = "[user]Why? Begin with <think> please.[/][assistant]<think>\n</think>\n\n"
    assert said.text == f"{front}Because"


@pytest.mark.parametrize("shape", SHAPES)
def test_training_goes_on_from_what_is_asked(shape: str, plain_tokenizer: Any) -> None:
    asked, own, front = SHAPES[shape]
    tokenizer = type(plain_tokenizer)(
        tokenizer_object=plain_tokenizer.backend_tokenizer, eos_token="<|end|>"
    )
    tokenizer.chat_template = template_of(asked, own)
    one = encode_example(tokenizer, Example(task="t", prompt="Why?", answer="Because"))
    assert tokenizer.decode(one.tokens[:-1]) == f"{front}Because"
    prompt = encode_prompt(tokenizer, "Why?")
    if shape != "another channel":  # there no answer goes on from what is asked
        assert one.tokens[: one.n_prompt] == prompt
    assert tokenizer.decode(one.tokens[one.n_prompt : -1]).endswith("Because")


def test_a_template_without_answers_has_them_behind_its_prompt() -> None:
    chat = render_chat(with_template("Q: {{ messages[0].content }}\nA:"), "Why?", "Because")
    assert chat.text == "Q: Why?\nA:Because"


def test_a_template_that_reads_enable_thinking_closes_the_thought() -> None:
    own = (
        "Q: {{ messages[0].content }}\nA:"
        "{% if enable_thinking is defined and not enable_thinking %}<think>none</think>{% endif %}"
    )
    stand_in = with_template(own)
    plain = stand_in.apply_chat_template

    def apply_chat_template(messages: Any, *, enable_thinking: bool = True, **more: Any) -> str:
        text = plain(messages, **more)
        return text if enable_thinking else f"{text}<think>none</think>"

    stand_in.apply_chat_template = apply_chat_template
    assert render_chat(stand_in, "Why?", "Because").text == "Q: Why?\nA:<think>none</think>Because"
    assert render_chat(stand_in, "Why?").text == "Q: Why?\nA:"


def test_a_thought_in_the_question_is_not_the_models() -> None:
    tokenizer = with_template(template_of("[A]", "[A]"))
    said = render_chat(tokenizer, "What is <think>?", "A tag")
    assert said.text == "[U]What is <think>?[/U][A]A tag"


def test_open_thoughts_by_hand() -> None:
    assert open_thought("<think>") == "<think>"
    assert open_thought("<think> so </think>") is None
    assert open_thought("<think></think><think>\n") == "<think>"
    assert open_thought("no thought") is None


class TestEndTokens:
    """An end token behind everything is not kept; one that ends a turn is."""

    def rendered(self, template: str, answer: str = "") -> str:
        tokenizer = with_template(template)
        tokenizer.eos_token = "</s>"
        return render_chat(tokenizer, "Why?", answer).text

    def test_behind_everything(self) -> None:
        template = (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}</s>"
        )
        assert self.rendered(template) == "user: Why?\nassistant: "
        assert self.rendered(template, "So") == "user: Why?\nassistant: So"

    def test_behind_a_turn(self) -> None:
        template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
        assert self.rendered(template) == "Why?</s>"
        assert self.rendered(template, "So") == "Why?</s>So"
