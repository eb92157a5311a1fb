"""Files of a run directory: written whole or not at all (`interp.files.whole`)."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from interp.files.text import read_json_object
from interp.files.whole import write_whole
from interp.lazy import pd

# The wide forms count too: some spreadsheets read them as the narrow ones.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_atomically(target: Path, text: str) -> Path:
    """Write text; a reader sees the old file or the new one. Raises UserError if it cannot."""
    return write_whole(target, text.encode("utf-8", errors="replace"))


def write_json(target: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON object."""
    return write_atomically(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


read_json = read_json_object


def write_jsonl(target: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return write_atomically(target, "".join(f"{line}\n" for line in lines))


def write_table(target: Path, table: "pd.DataFrame") -> Path:
    """Write a CSV file in which no text cell can act as a spreadsheet's formula."""
    text = table.copy()
    for column in text.select_dtypes(exclude=["number", "bool"]):
        text[column] = [_no_formula(cell) for cell in text[column]]
    text.columns = [_no_formula(name) for name in text.columns]
    buffer = io.StringIO()
    text.to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    return write_atomically(target, buffer.getvalue())


def _no_formula(cell: Any) -> Any:
    """A cell or a column's name with a quote before what a spreadsheet would compute.

    A carriage return becomes a line feed: pandas writes it without quotes, and the rest of the cell
    would begin a row of its own.
    """
    if not isinstance(cell, str):
        return cell
    marked = f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
    return marked.replace("\r\n", "\n").replace("\r", "\n")


def write_yaml(target: Path, content: Mapping[str, Any]) -> Path:
    """Write keys and values as YAML, in their order."""
    return write_atomically(target, yaml.safe_dump(dict(content), sort_keys=False))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()
