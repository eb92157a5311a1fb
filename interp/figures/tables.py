"""Tables of an ``evaluation.json``, for the report and the command line.

Every cell is text such as ``0.69 [0.52, 0.83]``; a missing measure is a dash.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, cast

from interp.errors import UserError
from interp.figures.measures import (
    HELD_OUT,
    MISSING,
    count_at,
    format_number,
    format_small,
    measure_at,
    value_at,
)
from interp.lazy import pd, rich_tables, rich_texts

COMPARISON_COLUMNS: tuple[str, ...] = (
    "setting",
    "preference, false premises",
    "preference, twins",
    "P(true), twins",
    "names true, false premises",
    "names false, false premises",
    "names true, twins",
    "neutral KL",
)
_MEASURES: tuple[tuple[str, str], ...] = (
    ("false_premise", "preference_accuracy"),
    ("true_premise", "preference_accuracy"),
    ("true_premise", "p_true_object"),
    ("false_premise", "true_object_mention_rate"),
    ("false_premise", "false_object_mention_rate"),
    ("true_premise", "true_object_mention_rate"),
)


def comparison_table(evaluation: Mapping[str, Any]) -> "pd.DataFrame":
    """One row for each setting, on held-out prompts.

    The settings are: no constraint, the evaluated head set, other head sets or sites
    (`alternatives`), and after each its matched random head sets; those that are told where the
    false object is come before those that a detector tells. Columns are `COMPARISON_COLUMNS`,
    all text. Raises UserError if the evaluation is malformed.
    """
    rows: list[tuple[str, ...]] = [("no constraint", *_cells(evaluation, "baseline"), MISSING)]
    for setting in sorted(settings_of(evaluation), key=_gated):
        rows.append((setting_name(setting), *_cells(setting, "constrained"), _neutral_kl(setting)))
        null = _null_row(setting)
        if null is not None:
            rows.append(null)
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def template_table(evaluation: Mapping[str, Any]) -> "pd.DataFrame":
    """Preference accuracy for each held-out question template, and over all of them.

    Columns: template, kind ("false premise" or "twin"), run ("no constraint" or "constrained"),
    value, low, high; the last three are numbers, NaN if missing.
    """
    rows: list[tuple[str, str, str, float, float | None, float | None]] = []
    templates = value_at(evaluation, *HELD_OUT, "templates") or {}
    paths = [(str(name), (*HELD_OUT, "templates", name)) for name in templates]
    kinds = (("false_premise", "false premise"), ("true_premise", "twin"))
    runs = (("baseline", "no constraint"), ("constrained", "constrained"))
    for (template, path), (key, kind), (run_key, run) in product(
        [*paths, ("all templates", HELD_OUT)], kinds, runs
    ):
        measure = measure_at(evaluation, *path, key, run_key, "preference_accuracy")
        if measure is not None:
            rows.append((template, kind, run, measure.value, measure.low, measure.high))
    table = pd.DataFrame(rows, columns=["template", "kind", "run", "value", "low", "high"])
    return table.astype({"value": float, "low": float, "high": float})


def rows_of_site(heads: "pd.DataFrame", site: str | None) -> "pd.DataFrame":
    """The rows of one site; `site` is optional if there is only one.

    Raises UserError, which lists the sites, for an unknown or missing site.
    """
    known = [str(name) for name in heads["site"].unique()]
    if site is None and len(known) == 1:
        return heads
    if site is None:
        raise UserError(f"the heads are of several sites; name one with site=: {', '.join(known)}")
    if site not in known:
        raise UserError(f"no heads of site {site!r}; there are: {', '.join(known) or 'none'}")
    return where(heads, heads["site"] == site)


def where(table: "pd.DataFrame", mask: "pd.Series") -> "pd.DataFrame":
    """The rows of a table for which `mask` is true."""
    return cast(pd.DataFrame, table[mask.astype(bool)])


def rich_table(frame: "pd.DataFrame", *, title: str | None = None) -> "rich_tables.Table":
    """The table for a terminal; brackets in cells are shown literally."""
    table = rich_tables.Table(
        title=None if title is None else rich_texts.Text(title), title_justify="left"
    )
    for position, column in enumerate(frame.columns):
        # On a narrow terminal a long word is wrapped, not truncated.
        justify = "left" if position == 0 else "right"
        table.add_column(rich_texts.Text(str(column)), justify=justify, overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(rich_texts.Text(str(cell)) for cell in row))
    return table


def settings_of(evaluation: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The evaluation itself, then each of its alternatives."""
    yield evaluation
    alternatives = value_at(evaluation, "alternatives") or []
    if not isinstance(alternatives, list) or any(not isinstance(a, Mapping) for a in alternatives):
        raise UserError(
            "evaluation.json: alternatives must be a list of objects; run `interp evaluate` again"
        )
    yield from alternatives


def setting_name(evaluation: Mapping[str, Any]) -> str:
    """A setting's name, such as ``attention, zero, 3 heads (1.1 %)``, with the gate if any."""
    parts = [str(evaluation[key]) for key in ("site", "mode") if evaluation.get(key)]
    factor = value_at(evaluation, "factor")
    if evaluation.get("mode") == "scale" and isinstance(factor, int | float):
        parts[-1] += f" {factor:g}"
    steps = count_at(evaluation, "decoding_steps")
    if steps is not None:
        parts.append(f"{steps} decoding step{'' if steps == 1 else 's'}")
    count = count_at(evaluation, "n_heads")
    if count is not None:
        fraction = measure_at(evaluation, "head_fraction")
        share = "" if fraction is None else f" ({100 * fraction.value:.1f} %)"
        parts.append(f"{count} head{'' if count == 1 else 's'}{share}")
    gate = evaluation.get("gate")
    if _gated(evaluation):
        parts.append(f"gate: {gate}")
    return ", ".join(parts) or "constrained"


def _gated(evaluation: Mapping[str, Any]) -> bool:
    """Whether a detector says where the constraint acts."""
    return evaluation.get("gate") not in (None, "oracle")


def _cells(evaluation: Mapping[str, Any], run: str) -> list[str]:
    measures = [measure_at(evaluation, *HELD_OUT, kind, run, name) for kind, name in _MEASURES]
    return [MISSING if measure is None else measure.format() for measure in measures]


def _neutral_kl(evaluation: Mapping[str, Any]) -> str:
    measure = measure_at(evaluation, "side_effects", "neutral_kl")
    return MISSING if measure is None else format_small(measure.value)


def _null_row(evaluation: Mapping[str, Any]) -> tuple[str, ...] | None:
    mean = measure_at(evaluation, "random_null", "preference_accuracy", "mean")
    if mean is None:
        return None
    sets = count_at(evaluation, "random_null", "n_sets")
    p95 = measure_at(evaluation, "random_null", "preference_accuracy", "p95")
    shown = format_number(mean.value)
    if p95 is not None:
        shown += f", p95 {format_number(p95.value)}"
    label = "random head sets" if sets is None else f"{sets} random head sets"
    return (f"{label}, matched", shown, *[MISSING] * (len(COMPARISON_COLUMNS) - 2))
