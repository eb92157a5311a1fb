"""The evaluated heads of a run, marked in its heads.csv."""

import csv
import io
import logging
from pathlib import Path

from interp.errors import UserError
from interp.figures.tables import settings_of
from interp.files.documents import write_atomically
from interp.report.read_run import read_evaluation, read_heads

logger = logging.getLogger(__name__)


def mark_evaluated(run: Path) -> None:
    """Mark the heads of evaluation.json in heads.csv, and keep the text of all other cells.

    Without an evaluation the table stays as it is. Raises UserError for a malformed file.
    """
    evaluated, path = run / "evaluation.json", run / "heads.csv"
    if not evaluated.is_file():
        return
    read_heads(path)  # raises for a malformed table
    settings = settings_of(read_evaluation(evaluated))
    chosen = {(part["site"], *head) for part in settings for head in part.get("heads") or ()}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    text = io.StringIO()
    writer = csv.DictWriter(text, reader.fieldnames or (), lineterminator="\n")
    writer.writeheader()
    for row in reader:
        head = (row["site"], int(row["layer"]), int(row["head"]))
        writer.writerow({**row, "selected": head in chosen})
    write_atomically(path, text.getvalue())


def mark_again(run: Path) -> None:
    """`mark_evaluated` for a table that was written anew; a damaged evaluation is only told."""
    try:
        mark_evaluated(run)
    except UserError as error:
        logger.warning("%s marks other heads than were evaluated: %s", run / "heads.csv", error)
