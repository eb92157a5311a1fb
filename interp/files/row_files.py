"""Files of rows: JSON lines, a JSON list, CSV or Parquet, row by row with line numbers."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from interp.errors import UserError
from interp.files.rows import Row, check_header, json_rows, table_rows
from interp.files.text import LARGEST_TEXT, one_line

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PARQUET_BATCH = 256


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file, numbered from one. Raises UserError, without the file's name."""
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


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".csv": table_rows,
    ".parquet": parquet_rows,
}
