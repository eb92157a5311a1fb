"""Files of a run directory: written whole or not at all (`interp.files`)."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from interp.errors import UserError
from interp.files import write_whole

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_atomically(target: Path, text: str) -> Path:
    """Write text; a reader sees the old file or the new one. Raises UserError if it cannot."""
    return write_whole(target, text.encode("utf-8", errors="replace"))


def write_json(target: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON object."""
    return write_atomically(target, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): make the run again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object: make the run again")
    return content


def write_jsonl(target: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return write_atomically(target, "".join(f"{line}\n" for line in lines))


def write_table(target: Path, table: pd.DataFrame) -> Path:
    """Write a CSV file in which no text cell can act as a spreadsheet's formula."""
    text = table.copy()
    for column in text.select_dtypes(exclude=["number", "bool"]):
        text[column] = [
            f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
            for cell in text[column]
        ]
    buffer = io.StringIO()
    text.to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    return write_atomically(target, buffer.getvalue())


def write_yaml(target: Path, content: Mapping[str, Any]) -> Path:
    """Write keys and values as YAML, in their order."""
    return write_atomically(target, yaml.safe_dump(dict(content), sort_keys=False))


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
