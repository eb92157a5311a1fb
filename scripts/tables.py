"""Reading and writing the tables under data/."""

import csv
import re
from pathlib import Path

Row = dict[str, str]

DATA = Path(__file__).resolve().parent.parent / "data"


def holds(text: str, words: str) -> bool:
    """Whether `text` has `words` in it as whole words."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def read(file: Path) -> list[Row]:
    """All rows of a CSV with a header."""
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def write(file: Path, rows: list[Row]) -> None:
    """One table, and a line that says how long it is."""
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{file.name}: {len(rows)} facts")
