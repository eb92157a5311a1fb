"""Reading a run directory; each file is checked when it is read.

A run needs `manifest.json` and `heads.csv`. Every other file is optional, and None if it is
missing. A malformed file raises a UserError that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from interp.errors import UserError
from interp.evaluation.transfer import MEASURES
from interp.figures.measures import HELD_OUT, value_at
from interp.files.shape import Maybe, check_shape
from interp.files.tables import read_table
from interp.files.text import read_json_lines, read_json_object
from interp.heads.headset import Site
from interp.lazy import pd
from interp.report.answers import MarkedPair
from interp.report.questions import QuestionsSection, questions_section

HEADS_NUMBERS = ("effect", "ci_low", "ci_high", "p_value", "q_value")
HEADS_COUNTS = ("layer", "head", "rank")
SETTINGS_NUMBERS = (
    *("head_fraction", "gain", "gain_low", "gain_high"),
    *("cost", "cost_low", "cost_high"),
)
_SETTING = {
    **dict.fromkeys(("model", "site", "mode", "gate"), Maybe(str)),
    "splits": Maybe({"held_out": Maybe({"templates": Maybe(dict)})}),
}
_EVALUATION = {**_SETTING, "alternatives": Maybe([_SETTING])}
_AGAIN = "run `interp evaluate` on this run again"
LARGEST_MODEL = 10**6
"""The largest number of heads in a heat map."""


@dataclass(frozen=True)
class Run:
    """The checked contents of a run directory; None for a missing optional file."""

    manifest: Mapping[str, Any]
    heads: "pd.DataFrame"
    evaluation: Mapping[str, Any] | None
    settings: "pd.DataFrame | None"
    null: "pd.DataFrame | None"
    generations: tuple[MarkedPair, ...] | None
    by_relation: "pd.DataFrame | None" = None
    transfer: "pd.DataFrame | None" = None
    questions: QuestionsSection | None = None


def read_run(folder: Path) -> Run:
    """Read a run directory. Raises UserError if it is not a run, or if a file is malformed."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory; give the directory of a run")
    for name in ("manifest.json", "heads.csv"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a run: it has no {name}; make one with `interp locate` "
                "or `interp demo`"
            )

    def optional(name: str, read: Any) -> Any:
        return read(folder / name) if (folder / name).is_file() else None

    return Run(
        manifest=read_json_object(folder / "manifest.json"),
        heads=read_heads(folder / "heads.csv"),
        evaluation=optional("evaluation.json", read_evaluation),
        settings=optional("settings.csv", read_settings),
        null=optional("null.csv", read_null),
        generations=optional("generations.jsonl", read_generations),
        by_relation=optional("heads_by_relation.csv", read_by_relation),
        transfer=optional("transfer.csv", read_transfer),
        questions=questions_section(folder),
    )


def read_heads(path: Path) -> "pd.DataFrame":
    """Read `heads.csv`, which has one row for each head and site."""
    again = "run `interp locate` again"
    table = read_table(
        path,
        texts=("site",),
        numbers=HEADS_NUMBERS,
        counts=HEADS_COUNTS,
        flags=("selected",),
        advice=again,
    )
    n_cells = (table["layer"].max() + 1) * (table["head"].max() + 1)
    for wrong, problem in (
        (table.empty, "the table has no rows"),
        (table["effect"].isna().any(), "a head has no effect"),
        (table.duplicated(["site", "layer", "head"]).any(), "two rows for one head and site"),
        (table["site"].nunique() > len(get_args(Site)), "more sites than there are"),
        (n_cells > LARGEST_MODEL, "more layers and heads than any model has"),
    ):
        if wrong:
            raise UserError(f"{path}: {problem}; {again}")
    return table


def read_by_relation(path: Path) -> "pd.DataFrame":
    """Read `heads_by_relation.csv`: the effects of each relation of a search over several."""
    return read_table(
        path,
        texts=("relation", "site"),
        numbers=(*HEADS_NUMBERS, "share"),
        counts=HEADS_COUNTS,
        flags=("selected",),
        advice="run `interp locate` again",
    )


def read_transfer(path: Path) -> "pd.DataFrame":
    """Read `transfer.csv`: head sets scored on relations that they were not searched in."""
    ends = ("", "_low", "_high")
    return read_table(
        path,
        texts=("searched", "scored", "site", "mode"),
        numbers=("baseline", *(f"{name}{end}" for name in MEASURES for end in ends)),
        counts=("n_heads", "n"),
        advice="run `interp evaluate --leave-one-out` again",
    )


def read_settings(path: Path) -> "pd.DataFrame":
    """Read `settings.csv`: gain and cost of each head count, site and mode on the search split."""
    return read_table(
        path,
        texts=("site", "mode"),
        numbers=SETTINGS_NUMBERS,
        counts=("n_heads",),
        flags=("chosen",),
    )


def read_null(path: Path) -> "pd.DataFrame":
    """Read `null.csv`: held-out preference accuracy of each matched random head set."""
    return read_table(
        path, texts=("site", "mode", "set"), numbers=("preference_accuracy",), counts=("n_heads",)
    )


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read `evaluation.json`, which needs the false premises without and with the constraint."""
    evaluation = check_shape(read_json_object(path), _EVALUATION, str(path), advice=_AGAIN)
    for name in ("baseline", "constrained"):
        keys = (*HELD_OUT, "false_premise", name)
        if value_at(evaluation, *keys) is None:
            raise UserError(f"{path}: {'.'.join(keys)} is missing; {_AGAIN}")
    return evaluation


def read_generations(path: Path) -> tuple[MarkedPair, ...]:
    """Read `generations.jsonl`: in each line a prompt and both answers to it."""
    pairs = []
    for number, row in read_json_lines(path, surrogates=True):
        try:
            pairs.append(MarkedPair.from_row(row))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: {error}; {_AGAIN}") from error
    return tuple(pairs)
