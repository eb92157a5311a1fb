"""Run the code of docs/tutorial.md on the embedded model, and put what it shows into the page.

    python scripts/run_tutorial.py [--page docs/tutorial.md]

The Python blocks run in order in one namespace, as the cells of a notebook would. What a block
prints, and the value of its last line, goes between the marks ``<!-- output -->`` and
``<!-- end of output -->`` behind it; a figure goes to the image named in ``<!-- figure: FILE -->``.
Everything else of the page is left as it is.
"""

import ast
import io
import os
import re
import textwrap
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parent.parent

WIDTH = 80
"""Characters of a line of text that the site shows without scrolling."""
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"\n<!-- output -->\n.*?<!-- end of output -->\n", flags=re.DOTALL)
FIGURE = re.compile(r"\n<!-- figure: (?P<file>\S+) -->\n")


@dataclass(frozen=True)
class Options:
    """Which page is run."""

    page: Path = ROOT / "docs" / "tutorial.md"
    """A Markdown file with Python blocks."""


def run_block(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run one block. Returns what it prints, and the value of its last line (or None)."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(tree, "<page>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<page>", "eval"), names)
    return printed.getvalue(), value


def as_text(value: Any) -> str:
    """A value as the page shows it: a table by its columns, anything else by its repr."""
    if value is None:
        return ""
    if isinstance(value, pd.DataFrame):
        return value.to_string(index=False, float_format=lambda number: f"{number:.3g}") + "\n"
    text = value if isinstance(value, str) else repr(value)
    return "\n".join(textwrap.fill(line, WIDTH) for line in text.splitlines()) + "\n"


def with_outputs(text: str, folder: Path) -> str:
    """The page with every block's output; figures are written below ``folder``."""
    names: dict[str, Any] = {"__name__": "tutorial"}
    parts, at = [], 0
    for block in BLOCK.finditer(text):
        printed, value = run_block(block["code"], names)
        parts.append(text[at : block.end()])
        at = block.end()
        if (figure := FIGURE.match(text, at)) and hasattr(value, "write_image"):
            target = folder / figure["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            value.write_image(target, scale=2)
        elif place := OUTPUT.match(text, at):
            shown = printed + as_text(value)
            parts.append(f"\n<!-- output -->\n```text\n{shown}```\n<!-- end of output -->\n")
            at = place.end()
    return "".join([*parts, text[at:]])


def main(options: Options) -> None:
    """Run the page and write it back; what its code saves goes to a directory that is deleted."""
    page = options.page.resolve()
    text = page.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        text = with_outputs(text, page.parent)
        os.chdir(ROOT)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
