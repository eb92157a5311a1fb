"""Examples of question files (JSON lines, CSV, Parquet), row by row with line numbers."""

from pathlib import Path

from interp.errors import UserError, errors_in
from interp.files.row_files import READERS, SUFFIXES
from interp.moelora.data.examples import Example
from interp.moelora.data.formats import ColumnMapping, detect


def read_examples(
    path: Path, *, columns: ColumnMapping | None = None, task: str | None = None
) -> tuple[Example, ...]:
    """The examples of one file; `task` names them where the rows do not.

    Raises `UserError` with the file's name and, where there is one, the line of the fault.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: not a data file; known endings: {', '.join(SUFFIXES)}")
    examples: list[Example] = []
    with errors_in(path):
        reader = columns
        for line, row in READERS[suffix](path):
            with errors_in(f"line {line}"):
                reader = reader or detect(row)
                examples.append(reader(row, task or path.stem))
        if not examples:
            raise UserError("the file is empty; it needs one question a line")
    return tuple(examples)
