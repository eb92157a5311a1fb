"""The moment at which chat templates are rendered: some of them write the date into every prompt.

A template calls ``strftime_now``, which transformers computes from the clock. Inside
``template_time`` it gives one fixed moment, so that all prompts of a run have the same date however
long the run takes, and when it is continued later. Other threads see the clock.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import transformers.utils.chat_template_utils as chat_templates

_moment: ContextVar[datetime | None] = ContextVar("template moment", default=None)
_lock = threading.Lock()
_open = 0
"""How many contexts are open, in all threads: the last one restores the clock."""


class _Clock:
    """Replaces ``datetime`` in transformers: gives the fixed moment, or else the clock's."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def now(self, tz: Any = None) -> datetime:
        """The moment for a template."""
        moment = _moment.get()
        return self.real.now(tz) if moment is None else moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def template_now() -> datetime:
    """The moment at which a chat template is rendered: the fixed one, or now."""
    module: Any = chat_templates
    return module.datetime.now()


@contextmanager
def template_time(moment: datetime) -> Iterator[None]:
    """Render every chat template as if it were this moment. Contexts may be nested."""
    global _open
    module: Any = chat_templates
    with _lock:
        _open += 1
        if not isinstance(module.datetime, _Clock):
            module.datetime = _Clock(module.datetime)
    token = _moment.set(moment)
    try:
        yield
    finally:
        _moment.reset(token)
        with _lock:
            _open -= 1
            if not _open and isinstance(module.datetime, _Clock):
                module.datetime = module.datetime.real


def reads_clock(tokenizer: Any) -> bool:
    """Whether a tokenizer's chat template calls ``strftime_now``."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))
