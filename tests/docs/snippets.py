"""The Python blocks of a Markdown page, and what can be said of one without running it.

A block is run by the tests unless the line before its fence is ``<!-- not run: REASON -->``. Of
every block, run or not, all imports must work, every name reached through an imported module must
be there, and every keyword given to something imported must be one that it takes.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```python\n(?P<code>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Snippet:
    """One block: its page, the line on which its code begins, and why it is not run, if so."""

    page: str
    line: int
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page with Python blocks, relative to the repository."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(one.relative_to(ROOT)) for one in files if "```python" in one.read_text("utf-8")]


def snippets_of(page: str) -> list[Snippet]:
    """The blocks of a page in their order."""
    return snippets_in((ROOT / page).read_text(encoding="utf-8"), page)


def snippets_in(text: str, page: str = "text") -> list[Snippet]:
    """The blocks of a page's text."""
    return [
        Snippet(page, text.count("\n", 0, found.start("code")) + 1, found["code"], found["reason"])
        for found in _FENCE.finditer(text)
    ]


def faults(code: str, names: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a block, without running it.

    Args:
        names: modules and what was imported so far on the page; the block's imports are added.
    """
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _import(node, names)
    for name in _assigned(tree):
        names.pop(name, None)  # a variable of the page, about which nothing is known
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from _missing(node, names)
        elif isinstance(node, ast.Call):
            yield from _unknown_keywords(node, names)


def _import(node: ast.Import | ast.ImportFrom, names: dict[str, Any]) -> Iterator[str]:
    for alias in node.names:
        try:
            if isinstance(node, ast.Import):
                module = importlib.import_module(alias.name)
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = (
                    module if alias.asname else importlib.import_module(first)
                )
            else:
                module = importlib.import_module(node.module or "")
                names[alias.asname or alias.name] = getattr(module, alias.name)
        except (ImportError, AttributeError) as error:
            yield f"line {node.lineno}: {error}"


def _assigned(tree: ast.AST) -> set[str]:
    stored = (
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    return set(stored)


def _resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression such as ``interp.patching.patch`` stands for; None if that is not known.

    Only through modules and classes: what an attribute of a value is, its type does not say.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, names)
        if inspect.ismodule(owner) or inspect.isclass(owner):
            return getattr(owner, node.attr, None)
    return None


def _missing(node: ast.Attribute, names: dict[str, Any]) -> Iterator[str]:
    owner = _resolve(node.value, names)
    if inspect.ismodule(owner) or inspect.isclass(owner):
        if hasattr(owner, node.attr):
            return
        yield f"line {node.lineno}: {owner.__name__} has no {node.attr}"


def _unknown_keywords(node: ast.Call, names: dict[str, Any]) -> Iterator[str]:
    called = _resolve(node.func, names)
    if not callable(called):
        return
    try:
        parameters = inspect.signature(called).parameters
    except ValueError:  # built in
        return
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for keyword in node.keywords:
        if keyword.arg is not None and keyword.arg not in parameters:
            yield f"line {node.lineno}: {ast.unparse(node.func)} takes no {keyword.arg}"
