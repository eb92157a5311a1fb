"""Chat templates are programs: they have limits, one date, and write what they are given."""

import time
from datetime import datetime
from typing import Any

import pytest

from interp.errors import UserError
from interp.models import render_chat
from interp.models.chat import check_text
from interp.models.template_clock import template_time
from interp.models.templates import _is_tame, check_length, check_template
from tests.models.test_chat import with_template

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "writing loops": "{% for a in range(9999) %}{% for b in range(99) %}x{% endfor %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a long word": "{{ 'x' * 1000000 }}",
    "doubling": "{% set n = namespace(v='xx') %}{% for i in range(60) %}"
    "{% set n.v = n.v ~ n.v %}{% endfor %}{{ n.v | length }}",
}


ENDLESS = ("loops", "a power")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_without_end_is_refused_at_once_when_seen_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.models.templates.MEMORY", 2**30)
    if name in ENDLESS:  # they use up whatever time they have
        monkeypatch.setattr("interp.models.templates.SECONDS", 1)
    template = "{{ messages[0].content }}" + HOSTILE[name]
    with pytest.raises(UserError, match=r"the model's chat template (takes|writes) more than"):
        render_chat(with_template(template), "Why?")
    begun = time.perf_counter()
    with pytest.raises(UserError, match="chat template"):
        check_template(template)
    assert time.perf_counter() - begun < 1


def test_endless_recursion_is_a_refusal() -> None:
    template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises(UserError, match="refuses the question"):
        render_chat(with_template(template), "Why?")


def test_ordinary_templates_need_no_trial(chat_tokenizer: Any) -> None:
    assert _is_tame(chat_tokenizer.chat_template)
    assert not any(map(_is_tame, HOSTILE.values()))


def test_a_template_that_needs_more_than_a_trial_has_is_no_fault() -> None:
    check_template("{{ tools[0] }}{{ range(3) | list }}{% generation %}x{% endgeneration %}")
    check_template("{% broken")  # told where it is rendered


def test_length_is_beside_what_was_given() -> None:
    assert check_length("x" * 3_000_000, 1_000_000)
    with pytest.raises(UserError, match="writes 3000000 characters"):
        check_length("x" * 3_000_000, 10)


class TestSystemPrompt:
    """A system prompt comes out whole, or is refused."""

    @pytest.mark.parametrize(
        "template",
        [
            "{{ messages[-1].content }}",
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        ],
    )
    def test_left_out(self, template: str) -> None:
        with pytest.raises(UserError, match="template leaves the system prompt out"):
            render_chat(with_template(template), "Why?", system="Be brief.")
        # The same words elsewhere are not the system prompt.
        with pytest.raises(UserError, match="template leaves the system prompt out"):
            render_chat(with_template(template), "Why? Be brief.", system="Be brief.")
        assert render_chat(with_template(template), "Why?").text == "Why?"
        assert render_chat(with_template(template), "Why?", system=" ").text == "Why?"

    def test_cut(self) -> None:
        template = "{% for m in messages %}{{ m.content[:20] }} {% endfor %}"
        assert render_chat(with_template(template), "Why?", system="Be brief.")
        with pytest.raises(UserError, match="changes the system prompt's words"):
            render_chat(with_template(template), "Why?", system="Be brief and to the point.")

    def test_shown_in_the_users_turn(self) -> None:
        template = "{{ messages | map(attribute='content') | map('trim') | join('\n') }}"
        chat = render_chat(with_template(template), "Why?", system=" Be brief.\n")
        assert chat.text == "Be brief.\nWhy?"


@pytest.mark.parametrize("text", [None, 7, ["Why?"], b"Why?"])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(UserError, match="the question must be text, not"):
        check_text("question", text)


def test_one_rendering_sees_one_moment(plain_tokenizer: Any) -> None:
    tokenizer = type(plain_tokenizer)(tokenizer_object=plain_tokenizer.backend_tokenizer)
    form = "%Y-%m-%d %H:%M:%S.%f"
    tokenizer.chat_template = f"{{{{ strftime_now('{form}') }}}} {{{{ messages[0].content }}}}"
    chat = render_chat(tokenizer, "Why?", "Since")  # the template is rendered several times
    assert chat.text[chat.question_start :].startswith("Why?")
    with template_time(datetime(2001, 2, 3)):
        assert render_chat(tokenizer, "Why?").text.startswith("2001-02-03 ")
    assert render_chat(tokenizer, "Why?").text > chat.text


def test_templates_without_a_default_are_refused() -> None:
    tokenizer = with_template("")
    tokenizer.chat_template = {"tool_use": "a", "rag": "b"}
    with pytest.raises(UserError, match=r"templates of other uses only \(tool_use, rag\)"):
        render_chat(tokenizer, "Why?")
