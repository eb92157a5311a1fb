"""A chat template that writes the date: one fixed moment inside, the clock's outside."""

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_templates

from interp.models import render_chat
from interp.models.template_clock import reads_clock, template_now, template_time
from tests.fixtures import CHAT_TEMPLATE, make_tokenizer

DATED = "It is {{ strftime_now('%d %b %Y, %H:%M:%S') }}.\n" + CHAT_TEMPLATE
ONE, OTHER = datetime(2001, 2, 3, 4, 5, 6), datetime(2011, 12, 13)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = make_tokenizer()
    made.chat_template = DATED
    return made


def first_line(tokenizer: Any) -> str:
    return render_chat(tokenizer, "Why is Rome the capital of Italy?").text.split("\n")[0]


def test_inside_it_is_the_fixed_moment(tokenizer: Any) -> None:
    real = chat_templates.datetime  # type: ignore[attr-defined]
    with template_time(ONE):
        assert template_now() == ONE
        assert first_line(tokenizer) == "It is 03 Feb 2001, 04:05:06."
        with template_time(OTHER):
            assert first_line(tokenizer) == "It is 13 Dec 2011, 00:00:00."
        assert first_line(tokenizer) == "It is 03 Feb 2001, 04:05:06."
    assert chat_templates.datetime is real  # type: ignore[attr-defined]
    assert abs(template_now() - datetime.now()) < timedelta(minutes=1)


def test_an_error_puts_the_clock_back(tokenizer: Any) -> None:
    real = chat_templates.datetime  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt), template_time(ONE):
        raise KeyboardInterrupt
    assert chat_templates.datetime is real  # type: ignore[attr-defined]


def test_threads_have_moments_of_their_own(tokenizer: Any) -> None:
    """Contexts of two threads end in the order in which they began, not the other way round."""
    real = chat_templates.datetime  # type: ignore[attr-defined]
    begun, end, lines = threading.Event(), threading.Event(), []

    def other() -> None:
        lines.append(first_line(tokenizer))  # outside: the clock's
        with template_time(OTHER):
            begun.set()
            assert end.wait(10)
            lines.append(first_line(tokenizer))

    with template_time(ONE):
        thread = threading.Thread(target=other)
        thread.start()
        assert begun.wait(10)
        assert first_line(tokenizer) == "It is 03 Feb 2001, 04:05:06."
    end.set()
    thread.join()
    assert lines[0] != "It is 03 Feb 2001, 04:05:06."
    assert lines[1] == "It is 13 Dec 2011, 00:00:00."
    assert chat_templates.datetime is real  # type: ignore[attr-defined]


def test_which_templates_ask_for_the_time(tokenizer: Any) -> None:
    assert reads_clock(tokenizer)
    assert not reads_clock(make_tokenizer())
    assert not reads_clock(make_tokenizer(chat=False))
    several = make_tokenizer()
    several.chat_template = {"default": CHAT_TEMPLATE, "tool_use": DATED}
    assert reads_clock(several)
