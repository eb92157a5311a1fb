"""The report of a search for false-premise heads."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from interp.evaluation.answer_pair import Outcome
from interp.figures.evaluation import (
    gain_cost_curve,
    head_heatmap,
    layer_profile,
    null_values,
    preference_by_template,
    random_null,
)
from interp.figures.measures import MISSING, count_at, format_number, format_small
from interp.figures.relations import heads_by_relation, transfer_matrix
from interp.figures.tables import (
    comparison_table,
    setting_name,
    settings_of,
    template_table,
    where,
)
from interp.files.documents import write_atomically
from interp.lazy import pd
from interp.report.answers import MarkedPair
from interp.report.page import PlacedFigure, dtype_sentence, manifest_rows, render_page
from interp.report.read_run import Run, read_run
from interp.report.summary import key_figures, summary_sentences

logger = logging.getLogger(__name__)

FDR = 0.05
MAX_HEADS = 600
MAX_ANSWERS = 120
MAX_CHARACTERS = 1500


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    A section whose file is missing is left out. Raises UserError if `run` is not a run directory or
    holds a malformed file; then an earlier report is kept.
    """
    target = run / "report.html"
    write_atomically(target, render_report(read_run(run)))
    logger.info("wrote %s", target)
    return target


def render_report(run: Run) -> str:
    """The page as text."""
    dtype = dtype_sentence(run.manifest)
    return render_page(
        "report.html.j2",
        scripts=("report.js.j2",),
        title=_title(run),
        evaluation=run.evaluation,
        setting=setting_name(run.evaluation) if run.evaluation else "",
        key_figures=key_figures(run.evaluation) if run.evaluation else (),
        sentences=[*_findings(run), *([dtype] if dtype else [])],
        comparison=comparison_table(run.evaluation) if run.evaluation else None,
        figures=_figures(run),
        heads=_head_rows(run.heads),
        n_heads=len(run.heads),
        generations=_answers(run.generations),
        questions=run.questions,
        manifest=manifest_rows(run.manifest),
        fdr=FDR,
        max_characters=MAX_CHARACTERS,
    )


def _title(run: Run) -> str:
    for source in (run.evaluation, run.manifest):
        model = source.get("model") if source else None
        if isinstance(model, Mapping):
            model = model.get("spec") or model.get("name")
        if isinstance(model, str) and model:
            return model
    return "run"


def _findings(run: Run) -> tuple[str, ...]:
    if run.evaluation:
        return summary_sentences(run.evaluation)
    n_selected = int(run.heads["selected"].sum())
    n_significant = int((run.heads["q_value"] <= FDR).sum())
    located = (
        f"{n_significant} of {len(run.heads)} head effects are significant at a false-discovery "
        f"rate of {100 * FDR:g} %; {n_selected} are selected. This run has not been evaluated."
    )
    return (located,)


def _figures(run: Run) -> dict[str, list[PlacedFigure]]:
    """The page's figures by section; a section without figures is an empty list."""
    place = PlacedFigure.place
    sites = list(run.heads["site"].unique())
    figures: dict[str, list[PlacedFigure]] = {
        name: [] for name in ("maps", "profiles", "curve", "null", "templates", "relations")
    }
    for number, site in enumerate(sites):
        title = f"site: {site}" if len(sites) > 1 else None
        figure = head_heatmap(run.heads, site=site, fdr=FDR, title=title)
        caption = f"Effect of each head at site {site}."
        figures["maps"].append(place(f"heatmap-{number}", figure, caption))
        figure = layer_profile(run.heads, site=site, fdr=FDR)
        figures["profiles"].append(place(f"layers-{number}", figure, f"By layer, site {site}."))
    if run.settings is not None and not run.settings.empty:
        caption = "Up is better, left is cheaper. Measured on the search split."
        figures["curve"].append(place("curve", gain_cost_curve(run.settings), caption))
    for number, setting in enumerate(settings_of(run.evaluation) if run.evaluation else ()):
        # Of two gates, only the settings of one may have a null.
        has_null = count_at(setting, "random_null", "n_sets") != 0
        if run.null is not None and has_null and null_values(run.null, setting):
            figure, caption = random_null(run.null, setting), setting_name(setting)
            figures["null"].append(place(f"null-{number}", figure, f"Compared with {caption}."))
    if run.evaluation and not template_table(run.evaluation).empty:
        figure = preference_by_template(run.evaluation)
        caption = "Whiskers: 95 % intervals over subjects."
        figures["templates"].append(place("templates", figure, caption))
    figures["relations"] = [*_relation_figures(run.by_relation), *_transfer_figures(run.transfer)]
    return figures


def _relation_figures(table: "pd.DataFrame | None") -> list[PlacedFigure]:
    """For each site, the best heads in each relation of a search over several."""
    if table is None:
        return []
    return [
        PlacedFigure.place(
            f"relations-{number}",
            heads_by_relation(where(table, table["site"] == site)),
            f"The best heads at site {site} in each relation, as shares of its largest effect.",
        )
        for number, site in enumerate(table["site"].unique())
    ]


def _transfer_figures(table: "pd.DataFrame | None") -> list[PlacedFigure]:
    """For each site and mode, the largest head sets searched × scored."""
    found: list[PlacedFigure] = []
    settings = () if table is None else table[["site", "mode"]].drop_duplicates().to_numpy()
    for number, (site, mode) in enumerate(settings):
        assert table is not None
        part = where(table, (table["site"] == site) & (table["mode"] == mode))
        count = int(part["n_heads"].max())
        figure = transfer_matrix(
            where(part, part["n_heads"] == count),
            value="preference_accuracy",
            title="preference accuracy",
        )
        caption = (
            f"{count} heads found in the relation of a row (site {site}, {mode}), scored on that "
            "of a column: share of held-out false premises on which the true object is preferred."
        )
        found.append(PlacedFigure.place(f"transfer-{number}", figure, caption))
    return found


def _head_rows(heads: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of the heads table: exact numbers for sorting, short ones for reading."""

    def small(value: float) -> str:
        return MISSING if value != value else format_small(value)

    rows = heads.sort_values(["selected", "rank"], ascending=[False, True]).head(MAX_HEADS)
    records = rows.to_dict("records")
    for record in records:
        ends = [format_number(record[name], 3) for name in ("ci_low", "ci_high")]
        record["effect_text"] = format_number(record["effect"], 3)
        record["interval"] = MISSING if record["ci_low"] != record["ci_low"] else " to ".join(ends)
        record["p_text"], record["q_text"] = small(record["p_value"]), small(record["q_value"])
        record["significant"] = record["q_value"] <= FDR
    return [{str(name): value for name, value in record.items()} for record in records]


def _answers(generations: tuple[MarkedPair, ...] | None) -> dict[str, dict[str, Any]]:
    """The first answers to false premises and to twins, their number, and their outcomes."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in ("false_premise", "true_premise"):
        pairs = [pair for pair in generations or () if pair.kind == kind]
        if pairs:
            found = [pair.outcome for pair in pairs]
            outcomes = {outcome: found.count(outcome) for outcome in get_args(Outcome)}
            kinds[kind] = {"shown": pairs[:MAX_ANSWERS], "n": len(pairs), "outcomes": outcomes}
    return kinds
