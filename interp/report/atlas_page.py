"""The page of an atlas in Markdown: tables of its rows, and how alike its runs' heads are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interp.figures.measures import MISSING, Measure, format_number
from interp.figures.tables import where
from interp.lazy import pd
from interp.report.atlas import Atlas
from interp.report.markdown import markdown_table, plain_text

Cell = Callable[[Mapping[str, Any]], str]

READING = """\
Every cell is what the files of a run say; a dash is what a run did not measure. Intervals are 95 %,
subjects resampled. *Stability*: the overlap (Jaccard) of the eight heads with the largest effects
between resamples of the subjects or, in a search over several relations, between relations; behind
it that of random sets. *Prefers the truth*: the share of held-out false premises whose cloze gives
the true object more than the false one. *Twins*: the same questions with the true object. *Gated*:
a detector that reads the question alone says where the heads are constrained; *told* knows where
the object is. *Gain kept*: the gated gain over the told one. *Random sets*: as many heads in each
layer, constrained as the column says.
"""


def render_atlas(atlas: Atlas, *, figure: str = "", head: str = "# Atlas\n") -> str:
    """The page.

    Args:
        figure: where the figure is, from the page: an image is shown, anything else is linked to.
        head: the page's beginning in Markdown.
    """
    searches = where(atlas.rows, atlas.rows["kind"] == "search")
    adapters = where(atlas.rows, atlas.rows["experts"].notna() | (atlas.rows["kind"] != "search"))
    parts = [head.rstrip("\n") + "\n", READING, "## The runs\n", _table(atlas.rows, RUNS)]
    if len(searches):
        parts += ["## Heads\n", _table(searches, MODELS), _figure(figure)]
        parts += _section("What constraining them does", searches, ("preference",), SCORES)
        moved = ("left_out", "other_relations")
        parts += _section("Where the heads were not searched", searches, moved, TRANSFER)
    if len(adapters):
        parts += ["## Adapters and their experts\n", _table(adapters, EXPERTS)]
    if len(atlas.comparisons):
        parts += ["## How alike the heads are\n", comparison_text(atlas.comparisons)]
    if atlas.skipped:
        lines = [f"- {plain_text(name)}: {plain_text(why)}" for name, why in atlas.skipped]
        parts += ["## Left out\n", "\n".join(lines) + "\n"]
    return "\n".join(part for part in parts if part)


def comparison_text(comparisons: "pd.DataFrame") -> str:
    """For each site a matrix: above the diagonal the overlap, below it the rank correlation."""
    texts = []
    for site, table in comparisons.groupby("site", sort=False):
        names = list(dict.fromkeys([*table["a"], *table["b"]]))
        cells = {}
        for row in table.to_dict("records"):
            for at, name in (((row["a"], row["b"]), "jaccard"), ((row["b"], row["a"]), "spearman")):
                cells[at] = f"{_number(row[name])} ({_number(row[f'{name}_null'])})"
        rows = [
            [name, *("" if name == other else cells.get((name, other), MISSING) for other in names)]
            for name in names
        ]
        counts = " or ".join(str(count) for count in sorted(set(table["n_heads"])))
        texts.append(
            f"Site {plain_text(site)}. Above the diagonal: the overlap (Jaccard) of the {counts} "
            "heads with the largest effects; below it: the rank correlation of all heads' effects. "
            "In brackets the mean of a null: any heads of the same layers at random, and effects "
            "permuted within layers; its 95th percentile is at most "
            f"{_number(table['jaccard_null_p95'].max())} and "
            f"{_number(table['spearman_null_p95'].max())}. A dash: effects of "
            "another kind, or of an architecture that is not known to be the same."
            f"\n\n{markdown_table(['', *names], rows)}"
        )
    return "\n".join(texts)


def _figure(place: str) -> str:
    if not place:
        return ""
    if not place.endswith((".png", ".svg")):
        return f"[The figure: every run's heads on relative depth]({place})\n"
    return (
        f"![Heads of every run on the relative depth of their layer]({place})\n\n"
        "*The heads of each run with the largest effects, on the relative depth of their layer; "
        "within a run the first head of a layer is on top. Size and colour: the effect as a share "
        "of the run's largest; crosses are negative. Chosen heads have a dark rim.*\n"
    )


def _section(
    title: str, rows: "pd.DataFrame", measured: Sequence[str], columns: Mapping[str, Cell]
) -> list[str]:
    """A table of the runs that measured one of some cells; nothing if none did."""
    any_measured: pd.Series = rows[list(measured)].notna().sum(axis=1) > 0
    kept = where(rows, any_measured)
    return [f"## {title}\n", _table(kept, columns)] if len(kept) else []


def _table(rows: "pd.DataFrame", columns: Mapping[str, Cell]) -> str:
    texts = [[cell(row) for cell in columns.values()] for row in rows.to_dict("records")]
    return markdown_table(list(columns), texts)


def _number(value: Any, digits: int = 2) -> str:
    return MISSING if pd.isna(value) else format_number(float(value), digits)


def _text(name: str) -> Cell:
    return lambda row: MISSING if pd.isna(row[name]) else str(row[name])


def _score(name: str, digits: int = 2) -> Cell:
    return lambda row: _number(row[name], digits)


def _beside(name: str, other: str, between: str) -> Cell:
    """Two cells in one, such as ``0.45 (0.02)``; without the first, a dash."""
    end = ")" if between.endswith("(") else ""

    def text(row: Mapping[str, Any]) -> str:
        shown = [
            f"{value:,}" if isinstance(value, int) else _number(value)
            for value in (row[name], row[other])
        ]
        return MISSING if shown[0] == MISSING else f"{shown[0]}{between}{shown[1]}{end}"

    return text


def _interval(name: str) -> Cell:
    def text(row: Mapping[str, Any]) -> str:
        if pd.isna(row[name]):
            return MISSING
        ends = [row[f"{name}_{end}"] for end in ("low", "high")]
        ends = [None if pd.isna(end) else float(end) for end in ends]
        return Measure(float(row[name]), *ends).format()

    return text


def _heads(row: Mapping[str, Any]) -> str:
    if pd.isna(row["n_heads"]):
        return MISSING
    return f"{row['n_heads']} ({format_number(100 * row['head_share'], 1)} %)"


def _stability(row: Mapping[str, Any]) -> str:
    shown = _interval("stability")(row)
    if shown == MISSING:
        return MISSING
    return f"{shown} ({_number(row['stability_null'])}), {row['stability_over']}"


def _random(row: Mapping[str, Any]) -> str:
    shown = _number(row["random_mean"])
    if shown == MISSING:
        return MISSING
    gate = "" if pd.isna(row["random_gate"]) else f", gate {row['random_gate']}"
    return f"{shown}, p95 {_number(row['random_p95'])} (n = {row['random_sets']}{gate})"


def _parameters(row: Mapping[str, Any]) -> str:
    value = row["parameters"]
    return MISSING if pd.isna(value) else f"{value / 1e6:,.1f} M"


MODELS: dict[str, Cell] = {
    "run": _text("run"),
    "known facts": _text("known"),
    "heads": _heads,
    "the first of them": _text("heads"),
    "mean depth": _score("depth"),
    "stability (chance)": _stability,
    "rank correlation (chance)": _beside("rank_correlation", "rank_correlation_null", " ("),
}
SCORES: dict[str, Cell] = {
    "run": _text("run"),
    "n": _text("scored"),
    "prefers the truth": _interval("preference"),
    "told": _interval("preference_told"),
    "random sets": _random,
    "P(true) fall, twins, told": _score("p_true_fall_told"),
    "twins' cost, told": _score("twin_cost_told"),
    "gated": _interval("preference_gated"),
    "gain kept": _score("gain_kept"),
    "P(true) fall, twins, gated": _score("p_true_fall_gated", 3),
    "twins' cost, gated": _score("twin_cost_gated", 3),
    "fires: false, twins": _beside("fired_on_false", "fired_on_twins", ", "),
}
TRANSFER: dict[str, Cell] = {
    "run": _text("run"),
    "relations left out in turn": _text("left_out_relations"),
    "heads": _text("left_out_heads"),
    "prefers the truth": _score("left_out"),
    "with the heads of all others": _interval("left_out_told"),
    "the worst": _score("left_out_worst"),
    "of": _text("left_out_worst_in"),
    "P(true) fall, twins": _score("left_out_p_true_fall"),
    "relations never searched": _text("other_relations"),
}
EXPERTS: dict[str, Cell] = {
    "run": _text("run"),
    "adapter": _text("adapter"),
    "experts": _text("experts"),
    "top k": _text("top_k"),
    "rank": _text("rank"),
    "trained parameters": _text("trainable_parameters"),
    "steps": _text("steps"),
    "accuracy": _score("accuracy"),
    "cosine of experts": _score("expert_cosine"),
    "task information (texts permuted)": _beside("task_information", "task_information_null", " ("),
    "projections with q ≤ 0.05": _beside("specialized_projections", "projections", " of "),
    "experts × tasks routed apart": _beside("task_experts", "tested_experts", " of "),
    "dead experts": _text("dead_experts"),
    "experts with an effect": _beside("effective_experts", "switched_off_experts", " of "),
}
RUNS: dict[str, Cell] = {
    "run": _text("run"),
    "kind": _text("kind"),
    "model": _text("model"),
    "architecture": _text("architecture"),
    "parameters": _parameters,
    "dtype": _text("dtype"),
    "quantization": _text("quantization"),
    "adapter": _text("adapter"),
    "relations or data": _text("relations"),
    "method": _text("method"),
    "site": _text("site"),
    "faithlens": _text("version"),
    "written": _text("written"),
}
