"""Reading a run directory: each file checked when it is read, so that the report can trust it.

`manifest.json` and `heads.csv` make a directory a run; every other file is optional and reads as
None where it is not there. What is there but malformed is a UserError that names the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from interp.errors import UserError
from interp.report.answers import MarkedPair
from interp.report.measures import HELD_OUT, value_at

HEADS_NUMBERS = ("effect", "ci_low", "ci_high", "p_value", "q_value")
HEADS_COUNTS = ("layer", "head", "rank")
SETTINGS_NUMBERS = (
    *("head_fraction", "gain", "gain_low", "gain_high"),
    *("cost", "cost_low", "cost_high"),
)


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
    table = _read_csv(path, ("site", *HEADS_COUNTS, *HEADS_NUMBERS, "selected"))
    table = _typed(table, path, numbers=HEADS_NUMBERS, counts=HEADS_COUNTS, flags=("selected",))
    if table.empty:
        raise UserError(f"{path}: the table has no rows; run `interp locate` again")
    if table["effect"].isna().any():
        raise UserError(f"{path}: a head has no effect; run `interp locate` again")
    if table.duplicated(["site", "layer", "head"]).any():
        raise UserError(
            f"{path}: a head stands there twice for one site; run `interp locate` again"
        )
    return table


def read_settings(path: Path) -> pd.DataFrame:
    """Read `settings.csv`: gain and cost of each head count, site and mode on the search split."""
    table = _read_csv(path, ("site", "mode", "n_heads", *SETTINGS_NUMBERS, "chosen"))
    return _typed(table, path, numbers=SETTINGS_NUMBERS, counts=("n_heads",), flags=("chosen",))


def read_null(path: Path) -> pd.DataFrame:
    """Read `null.csv`: held-out preference accuracy of each matched random head set."""
    table = _read_csv(path, ("site", "mode", "n_heads", "set", "preference_accuracy"))
    return _typed(table, path, numbers=("preference_accuracy",), counts=("n_heads",), flags=())


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose outermost value is an object."""
    try:
        found = json.loads(_read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); make the run again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object; make the run again")
    return found


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read `evaluation.json`, which must hold false premises without and with the constraint."""
    evaluation = read_object(path)
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
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            pairs.append(MarkedPair.from_row(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: {error}; run `interp evaluate` on this run again"
            ) from error
    return tuple(pairs)


def _optional(path: Path, read: Any) -> Any:
    return read(path) if path.is_file() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        # "nan" may be a number, but "NA" or "null" may be somebody's name for a site or mode.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a CSV table ({reason})") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; make the run again")
    return cast(pd.DataFrame, table[list(columns)])


def _typed(
    table: pd.DataFrame,
    path: Path,
    *,
    numbers: Sequence[str],
    counts: Sequence[str],
    flags: Sequence[str],
) -> pd.DataFrame:
    """Turn text columns into numbers, whole numbers and booleans. An empty number is NaN."""
    typed = table.copy()
    for name in numbers:
        typed[name] = [_number(text, path, name, row) for row, text in enumerate(table[name], 2)]
    for name in counts:
        typed[name] = [_count(text, path, name, row) for row, text in enumerate(table[name], 2)]
    for name in flags:
        typed[name] = [_flag(text, path, name, row) for row, text in enumerate(table[name], 2)]
    return typed


def _number(text: Any, path: Path, name: str, row: int) -> float:
    try:
        value = float(text) if text else float("nan")
    except (ValueError, TypeError):
        value = float("inf")
    if value in (float("inf"), float("-inf")):
        raise UserError(f"{path}, line {row}: {name} is {text!r}, not a number; make the run again")
    return value


def _count(text: Any, path: Path, name: str, row: int) -> int:
    value = _number(text, path, name, row)
    if value != value or value < 0 or value != int(value):
        raise UserError(
            f"{path}, line {row}: {name} is {text!r}, not a whole number; make the run again"
        )
    return int(value)


def _flag(text: Any, path: Path, name: str, row: int) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    try:
        return known[str(text).strip().lower()]
    except KeyError:
        raise UserError(
            f"{path}, line {row}: {name} is {text!r}, not True or False; make the run again"
        ) from None
