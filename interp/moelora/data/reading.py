"""Readers of question files (JSON lines, CSV, Parquet), row by row with line numbers."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from interp.errors import UserError, errors_in
from interp.files.rows import Row, check_header, json_rows, table_rows
from interp.files.text import LARGEST_TEXT, one_line
from interp.moelora.data.examples import Example
from interp.moelora.data.formats import ColumnMapping, detect

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PARQUET_BATCH = 256


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
        for line, row in _READERS[suffix](path):
            with errors_in(f"line {line}"):
                reader = reader or detect(row)
                examples.append(reader(row, task or path.stem))
        if not examples:
            raise UserError("the file is empty; it needs one question a line")
    return tuple(examples)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    rows: list[Row] = []
    size = 0
    try:
        # In small batches: a few bytes of the format can stand for very many rows.
        with pq.ParquetFile(path) as file:
            check_header(file.schema_arrow.names)
            narrow = {
                field.name: field.type.to_pandas_dtype()
                for field in file.schema_arrow
                if pa.types.is_float16(field.type) or pa.types.is_float32(field.type)
            }
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                size += batch.nbytes
                if size > LARGEST_TEXT:
                    break
                # Not by way of pandas, which makes whole numbers beside a missing one floats.
                rows += [_as_written(row, narrow) for row in batch.to_pylist()]
    except UserError:
        raise
    except Exception as error:  # the reader raises anything on a damaged file
        raise UserError(f"not a readable Parquet file ({one_line(error)})") from error
    if size > LARGEST_TEXT:
        raise UserError(f"holds more than {LARGEST_TEXT} bytes, which no such file does")
    yield from enumerate(rows, start=1)


def _as_written(row: Row, narrow: Mapping[str, Any]) -> Row:
    """A row whose narrow floats have the digits of their own type: 0.1, not 0.10000000149."""
    there = {name: dtype for name, dtype in narrow.items() if row[name] is not None}
    found = {name: float(str(dtype(row[name]))) for name, dtype in there.items()}
    return {**row, **found}


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".csv": table_rows,
    ".parquet": _parquet_rows,
}
