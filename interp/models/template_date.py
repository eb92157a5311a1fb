"""The date that chat templates see: one a process, so that no result mixes prompts of two days.

Templates of Llama 3, gpt-oss and others write the date (``strftime_now``) into the system prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from typing import Any

from transformers.utils import chat_template_utils

_GIVEN: "ContextVar[datetime | None]" = ContextVar("date that chat templates see", default=None)


def template_date() -> datetime:
    """What ``strftime_now`` of a chat template says: when this process first asked, or `dated`."""
    return _GIVEN.get() or _first_asked()


def writes_date(template: str) -> bool:
    """Whether a chat template reads the date."""
    return "strftime_now" in template


@contextmanager
def dated(date: datetime) -> Iterator[None]:
    """Chat templates see this date, as for a run that was begun on another day."""
    token = _GIVEN.set(date)
    try:
        yield
    finally:
        _GIVEN.reset(token)


@contextmanager
def date_held(template: str) -> Iterator[None]:
    """transformers renders this template with `template_date`."""
    compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
    if compile_template is None or not writes_date(template):
        yield
        return
    # The template is compiled once and kept; its globals are read whenever it is rendered.
    known: dict[str, Any] = compile_template(template).environment.globals
    own = known["strftime_now"]
    known["strftime_now"] = lambda form: template_date().strftime(form)
    try:
        yield
    finally:
        known["strftime_now"] = own


@cache
def _first_asked() -> datetime:
    return datetime.now()
