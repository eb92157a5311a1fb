"""``interp atlas`` as a function: run directories become a page, tables and a figure.

Writes ``atlas.md``, ``atlas.csv`` (a row a run), ``atlas_comparison.csv`` (a row a pair of runs of
one architecture) and ``atlas.html`` (the figure, which needs no network); of ``--out PAGE.md`` the
same beside that page, under its name.
"""

from collections.abc import Sequence
from pathlib import Path

from interp.errors import UserError
from interp.files.documents import write_atomically, write_table
from interp.report.atlas import Atlas, atlas
from interp.report.atlas_page import render_atlas


def page_of(out: Path) -> Path:
    """The page's path, of a directory or of the name of a page."""
    return out if out.suffix == ".md" else out / "atlas.md"


def atlas_run(runs: Sequence[Path], out: Path) -> Atlas:
    """Read the runs, and write the page, the tables and the figure.

    Args:
        out: a directory, or the name of the page (.md).

    Raises:
        UserError: no run that can be read, or a place that cannot be written to.
    """
    found, page = atlas(runs), page_of(out)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{page.parent} cannot be made ({error.strerror}): choose another --out"
        ) from error
    figure = page.with_suffix(".html")
    if has_heads := not found.heads.empty:
        shown = found.plot().to_html(include_plotlyjs=True, full_html=True)
        write_atomically(figure, shown)
    write_table(page.with_suffix(".csv"), found.to_dataframe())
    if len(found.comparisons):
        write_table(page.with_name(f"{page.stem}_comparison.csv"), found.comparisons)
    write_atomically(page, render_atlas(found, figure=figure.name if has_heads else ""))
    return found
