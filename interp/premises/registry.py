"""Relations on disk: the ones that ship with the package, and a user's own.

A relation is two files of one stem: `NAME.csv` with the facts and `NAME.yaml` with the sentences.
The CSV has the columns `subject` and `object`, optionally `also_true` (further right answers,
separated by semicolons, or a list as `interp.files.list_cells` reads it), and any further columns,
which templates may use as slots. Columns without a name are ignored: Excel leaves them. Cells get
single spaces and lose what is invisible at their ends (`interp.files.cells`). Every error
names its file, and its line in a CSV; the standard library's csv module reads the facts because
table libraries do not report line numbers.
"""

import os
import unicodedata
from dataclasses import fields
from pathlib import Path
from typing import Any

from interp.arguments import check_choice, shown
from interp.checked import checked
from interp.errors import UserError, errors_in
from interp.files.cells import clean_name, name_key
from interp.files.list_cells import list_in
from interp.files.text import LARGEST_TEXT, LARGEST_YAML, csv_rows, parse_yaml, read_text
from interp.premises.relation import (
    FRAMES,
    Fact,
    Relation,
    Template,
    check_rule,
    frame_template,
    is_year,
    not_a_year,
)

YAML_KEYS = tuple(field.name for field in fields(Relation) if field.name != "facts")
_REQUIRED_KEYS = ("name", "templates", "cloze", "direct")
_NOT_TEXT = ("templates", "search_templates", "frames")
_YAML_SUFFIXES = (".yaml", ".yml")


@checked
def list_relations() -> tuple[str, ...]:
    """The names of the relations that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in (data_dir() / "relations").glob("*.csv")))


@checked
def load_relation(name_or_csv: str | Path, *, templates: Path | None = None) -> Relation:
    """A shipped relation by name, or your own by the path of its CSV or YAML file.

    `templates` is the YAML file, where it is not beside the CSV under the same stem. Raises
    `UserError` for an unknown name and for every error in either file.
    """
    facts_file, templates_file = _locate(name_or_csv)
    templates_file = templates if templates is not None else templates_file
    with errors_in(templates_file):
        sentences = _parse_settings(parse_yaml(_read_text(templates_file)))
    facts = _read_facts(facts_file, years=sentences.get("false_object", "another") != "another")
    with errors_in(templates_file):
        return Relation(facts=facts, **sentences)


def data_dir() -> Path:
    """The tables' directory: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / "relations").is_dir():
            return folder
    raise UserError("the package's data directory is missing; install faithlens again")


def _locate(name_or_csv: str | Path) -> tuple[Path, Path]:
    """The CSV and the YAML file of a relation given by name or by path."""
    text = str(name_or_csv)
    path = Path(os.path.expanduser(name_or_csv))
    if isinstance(name_or_csv, str) and not path.suffix and path.name == text:
        if text not in list_relations():
            raise UserError(
                f"unknown relation {text!r}; known: {', '.join(list_relations())}; "
                "for your own relation give the path of its CSV file, with a YAML file beside it"
            )
        path = data_dir() / "relations" / f"{text}.csv"
    if path.suffix.lower() == ".csv":
        beside = [path.with_suffix(suffix) for suffix in _YAML_SUFFIXES]
        return path, next((file for file in beside if os.path.isfile(file)), beside[0])
    if path.suffix.lower() in _YAML_SUFFIXES:
        return path.with_suffix(".csv"), path
    raise UserError(f"{text}: not a relation; give a known name, or a .csv or .yaml file")


def _parse_settings(settings: Any) -> dict[str, Any]:
    """The keyword arguments of `Relation` but for its facts."""
    if not isinstance(settings, dict):
        raise UserError("not a mapping; write keys such as 'name:' and 'templates:'")
    for key in settings:
        check_choice("key", key, YAML_KEYS)
    if missing := [key for key in _REQUIRED_KEYS if key not in settings]:
        raise UserError(f"missing key {missing[0]!r}; required: {', '.join(_REQUIRED_KEYS)}")
    for key, value in settings.items():
        if key not in _NOT_TEXT and not isinstance(value, str):
            raise UserError(f"{key} must be text, got {value!r}; put it in quotes")
    check_rule(settings.get("false_object", "another"))
    templates = _texts("templates", settings["templates"])
    frames = _texts("frames", settings.get("frames", {}))
    for name in frames:
        check_choice("frame", name, FRAMES)
    names = list(templates)
    search = settings.get("search_templates", names[: len(names) // 2])
    if not isinstance(search, list) or not all(isinstance(name, str) for name in search):
        raise UserError(f"search_templates must be a list of template names, got {search!r}")
    return {
        "description": "",
        "subject_kind": "subject",
        "object_kind": "object",
        **settings,
        "templates": tuple(Template(name, text) for name, text in templates.items()),
        "search_templates": tuple(search),
        "frames": tuple(Template(frame_template(name), text) for name, text in frames.items()),
    }


def _texts(key: str, value: Any) -> dict[str, str]:
    """A mapping of names to texts; UserError for anything else."""
    if not isinstance(value, dict) or not all(
        isinstance(part, str) for item in value.items() for part in item
    ):
        raise UserError(f"{key} must map each {key[:-1]}'s name to its text")
    return value


def _read_facts(file: Path, *, years: bool) -> tuple[Fact, ...]:
    """The facts of a CSV; `years` demands that every object is one."""
    with errors_in(file):
        lines = csv_rows(_read_text(file))
        rows = ((line, [cell.strip() for cell in cells]) for line, cells in lines)
        header = _check_header(*next(rows, (1, [])))
        facts: list[Fact] = []
        line_of: dict[str, int] = {}
        for line, cells in rows:
            fact = _fact(line, header, cells)
            if years and not is_year(fact.object):
                raise UserError(f"line {line}: {not_a_year(fact.object, 'previous/next_year')}")
            key = name_key(fact.subject)
            if key in line_of:
                raise UserError(
                    f"line {line}: subject {fact.subject!r} is already in line "
                    f"{line_of[key]}; keep one row for each subject"
                )
            line_of[key] = line
            facts.append(fact)
        if not facts:
            raise UserError("holds no facts; add rows below the header")
    return tuple(facts)


_COLUMNS = ("subject", "object", "also_true")
"""Columns of a table of facts that mean something by their name."""


def _check_header(line: int, header: list[str]) -> list[str]:
    if missing := [name for name in ("subject", "object") if name not in header]:
        found = ", ".join(header) or "an empty file"
        raise UserError(
            f"line {line}: no column {missing[0]!r}; a table of facts needs the columns "
            f"subject and object, found {found}"
        )
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise UserError(f"line {line}: two columns are named {repeated[0]!r}")
    for name in header:
        meant = name.strip().casefold().replace(" ", "_").replace("-", "_")
        if meant in _COLUMNS and name != meant:
            raise UserError(f"line {line}: the column {name!r} is to be named {meant!r}")
    return header


def _fact(line: int, header: list[str], cells: list[str]) -> Fact:
    row = {name: cell for name, cell in zip(header, cells, strict=True) if name}
    with errors_in(f"line {line}"):
        also_true = _also_true(row.pop("also_true", ""))
    for column, cell in [*row.items(), *(("also_true", name) for name in also_true)]:
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in cell):
            raise UserError(f"line {line}: {column} holds a line break or control character")
    row = {column: clean_name(cell) for column, cell in row.items()}
    subject, object_ = row.pop("subject"), row.pop("object")
    for column, cell in (("subject", subject), ("object", object_)):
        if not cell:
            raise UserError(f"line {line}: {column} is empty")
    names = tuple(filter(None, map(clean_name, also_true)))
    return Fact(subject, object_, names, tuple(row.items()))


def _also_true(cell: str) -> list[str]:
    """The further right answers that a cell lists; some may be empty."""
    entries = list_in("also_true", cell)
    if entries is None:
        return [part.strip() for part in cell.split(";")]
    entries = [entry for entry in entries if entry is not None]
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, str | int):
            raise UserError(f"also_true holds {shown(entry)}, but must hold names")
    return [str(entry) for entry in entries]


def _read_text(file: Path) -> str:
    if not os.path.isfile(file):
        raise UserError(f"{file}: no such file; a relation needs a CSV and a YAML of one stem")
    return read_text(file, largest=LARGEST_YAML if file.suffix != ".csv" else LARGEST_TEXT)
