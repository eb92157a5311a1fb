"""Measured text in a page that is otherwise written by hand: between two marks."""

from pathlib import Path

from interp.files.documents import write_atomically


def write_between(page: Path, name: str, text: str) -> None:
    """Put text between ``<!-- name -->`` and ``<!-- end of name -->``; all else stays.

    Raises SystemExit if the page does not have both marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found_begin, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"{page} has no {begin} … {end}")
    write_atomically(page, f"{before}{begin}\n{text.strip()}\n{end}{after}")
