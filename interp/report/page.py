"""The shell of every page: one HTML file that needs nothing else, neither network nor neighbours.

Text is only ever text: Jinja escapes it in the page, plotly's labels are escaped where the figures
are made, and figures stand in the page as JSON in which no ``<`` is left. A content security policy
lets the scripts run that the page itself brings, by their hashes, and forbids every connection.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs


@dataclass(frozen=True)
class PlacedFigure:
    """A figure in the page: its JSON, its size in pixels and a caption that says how to read it."""

    name: str
    caption: str
    json: Markup
    height: int
    width: int | None

    @classmethod
    def place(cls, name: str, figure: go.Figure, caption: str) -> "PlacedFigure":
        """Let the page decide the width: the figure's own becomes the most it may take."""
        layout = figure.to_plotly_json()["layout"]
        width = layout.get("width")
        figure = go.Figure(figure).update_layout(width=None, autosize=True)
        return cls(name, caption, script_json(figure_json(figure)), int(layout["height"]), width)


def render_page(template: str, *, scripts: Sequence[str] = (), **content: Any) -> str:
    """A page as text, from a template that extends ``page.html.j2``.

    Args:
        template: its name in the package's templates.
        scripts: names of further scripts there; figures and tables that sort need none.
        content: what the template shows.
    """
    own = [template_text(name) for name in ("figures.js.j2", "tables.js.j2", *scripts)]
    all_scripts = [inline_script(get_plotlyjs()), *map(inline_script, own)]
    return render_part(
        template,
        policy=content_security_policy(all_scripts),
        style=Markup(template_text("report.css.j2")),
        scripts=all_scripts,
        **content,
    )


def render_part(template: str, **content: Any) -> str:
    """A template as text, with everything in ``content`` escaped that is not marked as markup."""
    environment = Environment(
        loader=PackageLoader("interp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def template_text(name: str) -> str:
    """A file of the package's templates as it is."""
    return (resources.files("interp.report") / "templates" / name).read_text(encoding="utf-8")


def manifest_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest as rows of text; what is nested is written as indented JSON."""
    return [
        (
            str(key),
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1),
        )
        for key, value in manifest.items()
    ]


def figure_json(figure: go.Figure) -> str:
    """A figure as JSON, its numbers to nine digits: all that a float32 holds, in half the space."""

    def short(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: short(value) for key, value in part.items()}
        if isinstance(part, list):
            return [short(value) for value in part]
        return float(f"{part:.9g}") if isinstance(part, float) else part

    return json.dumps(short(json.loads(str(figure.to_json()))), separators=(",", ":"))


def script_json(text: str) -> Markup:
    """JSON that can stand in a script element: the characters of markup as ``\\u`` escapes."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def inline_script(source: str) -> Markup:
    """A script's text as the browser will see and hash it. Raises ValueError if it would break out.

    The HTML parser turns every line end into a line feed before the hash is taken.
    """
    text = source.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower():
        raise ValueError("the script holds the end tag of a script element")
    return Markup(text)


def content_security_policy(scripts: list[Markup]) -> str:
    """Allow these scripts and nothing else to run; allow no source outside the page."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
