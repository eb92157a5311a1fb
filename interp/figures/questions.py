"""The table of a ``questions.json``, for the report and the command line.

Every cell is text such as ``0.69 [0.52, 0.83]``; what is not known is a dash.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from interp.figures.measures import MISSING, format_number, measure_at

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


def questions_table(content: Mapping[str, Any]) -> pd.DataFrame:
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
            mean, high = (format_number(null["rebuts"][key]) for key in ("mean", "p95"))
            cells = [f"{mean}, 95th percentile {high}", *[MISSING] * (len(RATES) - 1), MISSING]
            rows.append((name, f"{null['n_sets']} random sets", n, MISSING, *cells))
    return pd.DataFrame(rows, columns=columns)


def _cell(content: Mapping[str, Any], group: str, *keys: str) -> str:
    measure = measure_at(content, "groups", group, *keys, file=FILE)
    return MISSING if measure is None else measure.format()


def question_sentences(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The outcome for each group in a sentence, and what the rates rest on."""
    sentences = []
    for group, of_group in content["groups"].items():
        fired, more, same = (
            _cell(content, group, key) for key in ("fired", "rebuts_more", "unchanged")
        )
        sentences.append(
            f"{group_name(group).capitalize()} (n = {of_group['n']}, "
            f"{of_group['n_subjects']} resampled together): acted on {fired}, rebuttals {more} "
            f"more with the constraint, unchanged {same}."
        )
    sentences.append(
        f"An answer was judged by {content['judge']}, which reads it without understanding; "
        "brackets hold 95 % intervals."
        if content["judge"] == "judge_by_words"
        else f"An answer was judged by {content['judge']}; brackets hold 95 % intervals."
    )
    return tuple(sentences)
