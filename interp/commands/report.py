"""``interp report`` as a function: write the page of any kind of run from its files."""

from pathlib import Path

from interp.commands.circuit import write_circuit_report
from interp.commands.patch import write_patch_report
from interp.commands.probe import write_probe_report
from interp.errors import UserError
from interp.files.documents import read_json, write_atomically
from interp.files.links import check_links
from interp.report.heads_page import write_report


def report_run(run: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    The files show the kind of run: ``interp patch``, ``interp circuit``, ``interp probe``,
    ``interp moelora compare``, or a search for false-premise heads.

    Raises:
        UserError: the directory holds no such run, or files are missing or damaged.
    """
    check_links(run)
    if (run / "patch.json").is_file():
        return write_patch_report(run)
    if (run / "circuit_run.json").is_file():
        return write_circuit_report(run)
    if (run / "comparison.json").is_file():
        # Imported here because it imports PEFT, which takes seconds.
        from interp.report.comparison_page import check_comparison, read_losses, render_comparison

        path, losses = run / "comparison.json", read_losses(run / "losses.csv")
        content = check_comparison(read_json(path), str(path))
        return write_atomically(run / "report.html", render_comparison(content, losses))
    if (run / "probe.json").is_file():
        return write_probe_report(run)
    for file, command in (("analyze.json", "analyze"), ("training.json", "train")):
        if (run / file).is_file():
            raise UserError(
                f"{run} is a run of `interp moelora {command}`: repeat that command with the same "
                "--out to write its results again"
            )
    return write_report(run)
