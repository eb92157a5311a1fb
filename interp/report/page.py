"""What all pages share: each is one self-contained HTML file that needs no network.

Text never becomes markup: Jinja escapes it in the page, plotly's labels are escaped where the
figures are made, and figures are embedded as JSON without any ``<``. A content security policy
allows the page's own scripts, by their hashes, and forbids all connections.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from interp.files.shape import Maybe, check_shape
from interp.lazy import go, offline, pio

_DTYPE_CHECK = {
    **{"n_prompts": int, "against": str, "dtype": str},
    **{"largest_metric_difference": float, "largest_effect_difference": float},
}


@dataclass(frozen=True)
class PlacedFigure:
    """A figure in the page: its JSON, its size in pixels and a caption that explains it."""

    name: str
    caption: str
    json: Markup
    height: int
    width: int | None

    @classmethod
    def place(cls, name: str, figure: "go.Figure", caption: str) -> "PlacedFigure":
        """A figure whose width follows the page, up to the width of its layout."""
        content = figure.to_dict()
        layout = content["layout"]
        width = layout.pop("width", None)
        layout["autosize"] = True
        return cls(name, caption, script_json(figure_json(content)), int(layout["height"]), width)


def render_page(template: str, *, scripts: Sequence[str] = (), **content: Any) -> str:
    """A page as text, from a template that extends ``page.html.j2``.

    Args:
        template: its name in the package's templates.
        scripts: names of additional scripts in that folder.
        content: the variables of the template.
    """
    sources = [template_text(name) for name in ("figures.js.j2", "tables.js.j2", *scripts)]
    all_scripts = [inline_script(offline.get_plotlyjs()), *map(inline_script, sources)]
    return render_part(
        template,
        policy=content_security_policy(all_scripts),
        style=Markup(template_text("report.css.j2")),
        scripts=all_scripts,
        **content,
    )


def render_part(template: str, **content: Any) -> str:
    """A rendered template; everything in ``content`` that is not ``Markup`` is escaped."""
    return _environment().get_template(template).render(**content)


@functools.cache
def _environment() -> Environment:
    """Keeps the templates that it has compiled."""
    return Environment(
        loader=PackageLoader("interp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template_text(name: str) -> str:
    """The text of a file in the package's templates."""
    return (resources.files("interp.report") / "templates" / name).read_text(encoding="utf-8")


def manifest_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest as rows of text; nested values are written as indented JSON."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)

    return [(str(key), text(value)) for key, value in manifest.items()]


def dtype_sentence(manifest: Mapping[str, Any]) -> str | None:
    """The manifest's ``dtype_check`` in words; None without one, as for a run in float32."""
    where = "manifest.json: dtype_check"
    found = check_shape(manifest.get("dtype_check"), Maybe(dict), where)
    if found is None:
        return None
    if "left_out" in found:
        check_shape(found, {"dtype": str, "left_out": str}, where)
        return (
            f"Computed in {found['dtype']}; the comparison with float32 was left out: "
            f"{found['left_out']}."
        )
    check_shape(found, _DTYPE_CHECK, where)
    metric, effect = found["largest_metric_difference"], found["largest_effect_difference"]
    prompts = "prompt" if found["n_prompts"] == 1 else "prompts"
    return (
        f"Computed in {found['dtype']}: on {found['n_prompts']} {prompts} the unedited metric is "
        f"at most {metric:.2g} from {found['against']}, an effect at most {effect:.2g}."
    )


def figure_json(content: Mapping[str, Any]) -> str:
    """A figure's content as JSON, with nine significant digits: enough for float32."""

    def short(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: short(value) for key, value in part.items()}
        if isinstance(part, list):
            return [short(value) for value in part]
        return float(f"{part:.9g}") if isinstance(part, float) else part

    text = str(pio.to_json(content, validate=False))
    return json.dumps(short(json.loads(text)), separators=(",", ":"))


def script_json(text: str) -> Markup:
    """JSON for a script element: the characters of markup as ``\\u`` escapes."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@functools.lru_cache(maxsize=16)
def inline_script(source: str) -> Markup:
    """A script's text as the browser hashes it, with line feeds as line ends.

    Raises:
        ValueError: the text would end the script element.
    """
    text = source.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower():
        raise ValueError("the script holds the end tag of a script element")
    return Markup(text)


def content_security_policy(scripts: list[Markup]) -> str:
    """The policy that allows only these scripts, and no source outside the page."""
    hashes = " ".join(f"'sha256-{_script_hash(text)}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@functools.lru_cache(maxsize=16)
def _script_hash(text: Markup) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
