"""A griffe extension for the documentation site: ``text::`` and an indented block, as Markdown.

Docstrings introduce an example by two colons, which Python programmers read as they are. Markdown
wants one colon, or none on a line of its own, before an indented block.
"""

import re
from typing import Any

import griffe

_ALONE = re.compile(r"^[ \t]*::[ \t]*\n", flags=re.MULTILINE)
_AT_END = re.compile(r"::[ \t]*$", flags=re.MULTILINE)


def as_markdown(text: str) -> str:
    """The docstring with one colon where reStructuredText has two."""
    return _AT_END.sub(":", _ALONE.sub("", text))


class LiteralBlocks(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
