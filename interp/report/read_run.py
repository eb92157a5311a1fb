"""Reading a run directory: each file checked when it is read, so that the report can trust it.

`manifest.json` and `heads.csv` make a directory a run; every other file is optional and reads as
None where it is not there. What is there but malformed is a UserError that names the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from interp.errors import UserError
from interp.figures.measures import HELD_OUT, value_at
from interp.files import Maybe, check_shape, read_json_lines, read_json_object, read_table
from interp.heads.headset import Site
from interp.report.answers import MarkedPair

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
LARGEST_MODEL = 10**6
"""Heads in the largest heat map that is drawn."""


@dataclass(frozen=True)
class Run:
    """The checked contents of a run directory; None for an optional file that is not there."""

    manifest: Mapping[str, Any]
    heads: pd.DataFrame
    evaluation: Mapping[str, Any] | None
    settings: pd.DataFrame | None
    null: pd.DataFrame | None
    agreement: Mapping[str, Any] | None
    generations: tuple[MarkedPair, ...] | None


def read_run(folder: Path) -> Run:
    """Read a run directory. Raises UserError if it is none, or if one of its files is malformed."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory; give the directory of a run")
    for name in ("manifest.json", "heads.csv"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a run: it has no {name}; make one with `interp locate` "
                "or `interp demo`"
            )
    return Run(
        manifest=read_object(folder / "manifest.json"),
        heads=read_heads(folder / "heads.csv"),
        evaluation=_optional(folder / "evaluation.json", read_evaluation),
        settings=_optional(folder / "settings.csv", read_settings),
        null=_optional(folder / "null.csv", read_null),
        agreement=_optional(folder / "agreement.json", read_object),
        generations=_optional(folder / "generations.jsonl", read_generations),
    )


def read_heads(path: Path) -> pd.DataFrame:
    """Read `heads.csv`: one row a head and site, with whole numbers and booleans as such."""
    again = "run `interp locate` again"
    table = read_table(
        path,
        texts=("site",),
        numbers=HEADS_NUMBERS,
        counts=HEADS_COUNTS,
        flags=("selected",),
        advice=again,
    )
    if table.empty:
        raise UserError(f"{path}: the table has no rows; {again}")
    if table["effect"].isna().any():
        raise UserError(f"{path}: a head has no effect; {again}")
    if table.duplicated(["site", "layer", "head"]).any():
        raise UserError(f"{path}: a head stands there twice for one site; {again}")
    if table["site"].nunique() > len(get_args(Site)):
        raise UserError(f"{path}: heads of {table['site'].nunique()} sites; {again}")
    if (table["layer"].max() + 1) * (table["head"].max() + 1) > LARGEST_MODEL:
        raise UserError(f"{path}: no model has so many layers and heads; {again}")
    return table


def read_settings(path: Path) -> pd.DataFrame:
    """Read `settings.csv`: gain and cost of each head count, site and mode on the search split."""
    return read_table(
        path,
        texts=("site", "mode"),
        numbers=SETTINGS_NUMBERS,
        counts=("n_heads",),
        flags=("chosen",),
    )


def read_null(path: Path) -> pd.DataFrame:
    """Read `null.csv`: held-out preference accuracy of each matched random head set."""
    return read_table(
        path, texts=("site", "mode", "set"), numbers=("preference_accuracy",), counts=("n_heads",)
    )


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose outermost value is an object."""
    return read_json_object(path)


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read `evaluation.json`, which must hold false premises without and with the constraint."""
    again = "run `interp evaluate` on this run again"
    evaluation = check_shape(read_object(path), _EVALUATION, str(path), advice=again)
    for key in ("baseline", "constrained"):
        place = (*HELD_OUT, "false_premise", key)
        if value_at(evaluation, *place) is None:
            raise UserError(
                f"{path}: {'.'.join(place)} is missing; run `interp evaluate` on this run again"
            )
    return evaluation


def read_generations(path: Path) -> tuple[MarkedPair, ...]:
    """Read `generations.jsonl`: one prompt a line, its answers without and with the constraint."""
    pairs = []
    for number, row in read_json_lines(path, surrogates=True):
        try:
            pairs.append(MarkedPair.from_row(row))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: {error}; run `interp evaluate` on this run again"
            ) from error
    return tuple(pairs)


def _optional(path: Path, read: Any) -> Any:
    return read(path) if path.is_file() else None
