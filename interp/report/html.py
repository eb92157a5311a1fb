"""The report of a run: one HTML file that needs nothing else, neither network nor neighbours.

Text from the run is only ever text: Jinja escapes it in the page, plotly's labels are escaped where
the figures are made, and figures stand in the page as JSON in which no ``<`` is left. A content
security policy lets the two scripts run that the report itself brings, by their hashes, and
forbids every connection.
"""

import base64
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from interp.errors import UserError
from interp.report.answers import MarkedPair
from interp.report.figures import (
    gain_cost_curve,
    head_heatmap,
    layer_profile,
    method_agreement,
    null_values,
    preference_by_template,
    random_null,
)
from interp.report.measures import format_number, format_small
from interp.report.reading import Run, read_run
from interp.report.summary import agreement_sentence, key_figures, summary_sentences
from interp.report.tables import comparison_table, setting_name, settings_of, template_table
from interp.runs.store import write_atomically

logger = logging.getLogger(__name__)

FDR = 0.05
MAX_HEADS = 600
MAX_ANSWERS = 120
MAX_CHARACTERS = 1500


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


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    A section whose file is missing is left out. Raises UserError if `run` is not a run directory or
    holds a malformed file; a report that was there before is then still there.
    """
    target = run / "report.html"
    write_atomically(target, render_report(read_run(run)))
    logger.info("wrote %s", target)
    return target


def render_report(run: Run) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("interp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [inline_script(get_plotlyjs()), inline_script(_own("report.js.j2"))]
    return environment.get_template("report.html.j2").render(
        title=_title(run),
        policy=content_security_policy(scripts),
        style=Markup(_own("report.css.j2")),
        scripts=scripts,
        evaluation=run.evaluation,
        setting=setting_name(run.evaluation) if run.evaluation else "",
        key_figures=key_figures(run.evaluation) if run.evaluation else (),
        sentences=_sentences(run),
        comparison=comparison_table(run.evaluation) if run.evaluation else None,
        figures=_figures(run),
        heads=_head_rows(run.heads),
        n_heads=len(run.heads),
        generations=_answers(run.generations),
        manifest=_manifest_rows(run.manifest),
        fdr=FDR,
        max_characters=MAX_CHARACTERS,
    )


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


def _own(name: str) -> str:
    return (resources.files("interp.report") / "templates" / name).read_text(encoding="utf-8")


def _title(run: Run) -> str:
    for source in (run.evaluation, run.manifest):
        model = source.get("model") if source else None
        if isinstance(model, Mapping):
            model = model.get("spec") or model.get("name")
        if isinstance(model, str) and model:
            return model
    return "run"


def _sentences(run: Run) -> tuple[str, ...]:
    if run.evaluation:
        return summary_sentences(run.evaluation, run.agreement)
    n_selected = int(run.heads["selected"].sum())
    n_significant = int((run.heads["q_value"] <= FDR).sum())
    located = (
        f"{n_significant} of {len(run.heads)} head effects are significant at a false-discovery "
        f"rate of {100 * FDR:g} %; {n_selected} are selected. This run has not been evaluated."
    )
    agreement = agreement_sentence(run.agreement) if run.agreement else None
    return (located, agreement) if agreement else (located,)


def _figures(run: Run) -> dict[str, list[PlacedFigure]]:
    """The page's figures by section; a section without any is an empty list."""
    several = run.heads["site"].nunique() > 1
    maps, profiles = [], []
    for number, site in enumerate(run.heads["site"].unique()):
        title = f"site: {site}"
        caption = f"Effect of each head at site {site}."
        figure = head_heatmap(run.heads, site=site, fdr=FDR, title=title if several else None)
        maps.append(PlacedFigure.place(f"heatmap-{number}", figure, caption))
        figure = layer_profile(run.heads, site=site, fdr=FDR)
        profiles.append(PlacedFigure.place(f"layers-{number}", figure, f"By layer, site {site}."))
    figures = {"maps": maps, "profiles": profiles, "curve": [], "null": [], "templates": []}
    if run.settings is not None and not run.settings.empty:
        caption = "Up is better, left is cheaper. Measured on the search split."
        figure = gain_cost_curve(run.settings)
        figures["curve"].append(PlacedFigure.place("curve", figure, caption))
    if run.evaluation and run.null is not None:
        for number, setting in enumerate(settings_of(run.evaluation)):
            if null_values(run.null, setting):
                figure = random_null(run.null, setting)
                caption = f"Compared with {setting_name(setting)}."
                figures["null"].append(PlacedFigure.place(f"null-{number}", figure, caption))
    if run.evaluation and not template_table(run.evaluation).empty:
        figure = preference_by_template(run.evaluation)
        caption = "Whiskers: 95 % intervals over subjects."
        figures["templates"].append(PlacedFigure.place("templates", figure, caption))
    figures["agreement"] = _agreement_figure(run.agreement)
    return figures


def _agreement_figure(agreement: Mapping[str, Any] | None) -> list[PlacedFigure]:
    """The scatter of two methods, if the file has `points`: rows of layer, head, x, y."""
    if not agreement or not agreement.get("points"):
        return []
    try:
        points = pd.DataFrame(agreement["points"], columns=["layer", "head", "x", "y"])
        points = points.astype({"layer": int, "head": int, "x": float, "y": float})
    except (ValueError, TypeError) as error:
        raise UserError(
            "agreement.json: points must be rows of layer, head, x, y; run `interp locate` again"
        ) from error
    names = {axis: str(agreement.get(axis, axis)) for axis in ("x", "y")}
    figure = method_agreement(
        points.rename(columns={"x": "effect"}),
        points.rename(columns={"y": "effect"}),
        x_name=names["x"],
        y_name=names["y"],
    )
    return [PlacedFigure.place("agreement", figure, "Each dot is a head.")]


def _head_rows(heads: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the heads table: exact numbers for sorting, short ones for reading."""
    wanted = heads.sort_values(["selected", "rank"], ascending=[False, True]).head(MAX_HEADS)
    rows = []
    for record in wanted.to_dict("records"):
        low, high = record["ci_low"], record["ci_high"]
        interval = "–" if low != low else f"{format_number(low, 3)} to {format_number(high, 3)}"
        rows.append(
            {
                **record,
                "effect_text": format_number(record["effect"], 3),
                "interval": interval,
                "p_text": "–"
                if record["p_value"] != record["p_value"]
                else format_small(record["p_value"]),
                "q_text": "–"
                if record["q_value"] != record["q_value"]
                else format_small(record["q_value"]),
                "significant": record["q_value"] <= FDR,
            }
        )
    return rows


def _answers(generations: tuple[MarkedPair, ...] | None) -> dict[str, dict[str, Any]]:
    """False premises and twins apart, the first of each, and how many there are."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in ("false_premise", "true_premise"):
        pairs = [pair for pair in generations or () if pair.kind == kind]
        if pairs:
            outcomes = dict.fromkeys(("mended", "right", "wrong", "broken"), 0)
            for pair in pairs:
                outcomes[pair.outcome] += 1
            kinds[kind] = {"shown": pairs[:MAX_ANSWERS], "n": len(pairs), "outcomes": outcomes}
    return kinds


def _manifest_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest as rows of text; what is nested is written as indented JSON."""
    return [
        (
            str(key),
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1),
        )
        for key, value in manifest.items()
    ]
