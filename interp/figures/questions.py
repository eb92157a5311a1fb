"""The table of a ``questions.json``, for the report and the command line.

Every cell is text such as ``0.69 [0.52, 0.83]``; what is not known is a dash.
"""

from collections.abc import Mapping
from typing import Any

from interp.figures.measures import MISSING, format_number, measure_at
from interp.lazy import pd

FILE = "questions.json"
GROUP_NAMES: dict[str, str] = {
    "false_premise": "false premises",
    "true_premise": "true premises",
    "unlabelled": "without a label",
}
RUN_NAMES = {"baseline": "no constraint", "constrained": "constrained"}
RATES = {
    "rebuts": "rebuts",
    "names_answer": "names a right answer",
    "names_false_object": "names the false object",
}


def group_name(group: object) -> str:
    """A group of questions in words."""
    return GROUP_NAMES.get(str(group), str(group))


def questions_table(content: Mapping[str, Any]) -> "pd.DataFrame":
    """Two rows for each group of questions, without and with the constraint, and one for its null.

    Raises UserError if the content is malformed.
    """
    columns = ["questions", "answers", "n", "acted on", *RATES.values(), "unchanged"]
    rows: list[tuple[str, ...]] = []
    for group, of_group in content["groups"].items():
        name, n = group_name(group), str(of_group["n"])
        for run, run_name in RUN_NAMES.items():
            with_constraint = run == "constrained"
            outer = [
                _cell(content, group, key) if with_constraint else MISSING
                for key in ("fired", "unchanged")
            ]
            rates = [_cell(content, group, run, rate) for rate in RATES]
            rows.append((name, run_name, n, outer[0], *rates, outer[1]))
        null = of_group.get("random_null")
        if null is not None:
            rates = [_null_cell(null.get(rate)) for rate in RATES]
            rows.append((name, f"{null['n_sets']} random sets", n, MISSING, *rates, MISSING))
    return pd.DataFrame(rows, columns=columns)


def _null_cell(null: Mapping[str, float] | None) -> str:
    """The mean over random sets and their 95th percentile, such as ``0.10, p95 0.20``."""
    if null is None:
        return MISSING
    return f"{format_number(null['mean'])}, p95 {format_number(null['p95'])}"


def _cell(content: Mapping[str, Any], group: str, *keys: str) -> str:
    measure = measure_at(content, "groups", group, *keys, file=FILE)
    return MISSING if measure is None else measure.format()


def question_sentences(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The outcome for each group in a sentence, and what the rates rest on."""
    sentences = []
    for group, of_group in content["groups"].items():
        fired, same = (_cell(content, group, key) for key in ("fired", "unchanged"))
        changes = {name: _cell(content, group, "change", name) for name in RATES}
        shown = [
            f"{words} {changes[name]}" for name, words in RATES.items() if changes[name] != MISSING
        ]
        sentences.append(
            f"{group_name(group).capitalize()} (n = {of_group['n']}, {of_group['n_subjects']} "
            f"subjects or questions resampled): acted on {fired}, unchanged {same}; change with "
            f"the constraint: {', '.join(shown)}."
        )
    words = content["judge"] == "judge_by_words"
    reads = ", which looks for words and does not understand" if words else ""
    sentences.append(
        f"Rebuttals are as {content['judge']} has them{reads}. Brackets hold 95 % bootstrap "
        "intervals, which have no width where all answers agree."
    )
    return tuple(sentences)


def narrow_table(content: Mapping[str, Any]) -> "pd.DataFrame":
    """The same table on its side, for a terminal: a row a measure, intervals on their own line."""
    table = questions_table(content)
    heading = table["questions"] + "\n" + table["answers"]
    table = table.drop(columns=["questions", "answers"]).set_axis(heading, axis=0)
    table = table.T.reset_index(names="measure").rename_axis(columns=None)
    return table.map(lambda cell: cell.replace(" [", "\n[").replace(", p95", "\np95"))
