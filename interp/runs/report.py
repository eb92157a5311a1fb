"""``interp report`` as a function: the page of a run of any kind, made again from its files."""

from pathlib import Path

import pandas as pd

from interp.errors import UserError
from interp.report.comparison_page import render_comparison
from interp.report.html import write_report
from interp.runs.patch import write_patch_report
from interp.runs.probe import write_probe_report
from interp.runs.store import read_json, write_atomically


def report_run(run: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Which kind of run it is, its files say: of ``interp patch``, ``interp probe``, ``interp moelora
    compare``, or of the search for false-premise heads.

    Raises:
        UserError: a directory that holds no such run, or files that are missing or damaged.
    """
    if (run / "patch.json").is_file():
        return write_patch_report(run)
    if (run / "comparison.json").is_file():
        return _write_comparison(run)
    if (run / "probe.json").is_file():
        return write_probe_report(run)
    for file, command in (("analyze.json", "analyze"), ("training.json", "train")):
        if (run / file).is_file():
            raise UserError(
                f"{run} is a run of `interp moelora {command}`: give that command again, with the "
                "same --out, for what it makes"
            )
    return write_report(run)


def _write_comparison(run: Path) -> Path:
    try:
        losses = pd.read_csv(run / "losses.csv")
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'losses.csv'} cannot be read ({error})") from error
    write_atomically(
        run / "report.html", render_comparison(read_json(run / "comparison.json"), losses)
    )
    return run / "report.html"
