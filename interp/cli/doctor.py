"""``interp doctor``: print what `interp.commands.doctor` finds.

It is apart from the other commands, since it must run where their imports fail.
"""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.cli.summaries import TOOLS
from interp.commands.doctor import Finding, diagnose
from interp.errors import UserError

FAULTS = 1
"""The exit code where something that is needed is missing or does not work."""


def doctor(words: list[str], console: Console) -> None:
    """Print a row for everything that was looked at; exit with ``FAULTS`` if one is a fault."""
    if words and words[0] in ("-h", "--help"):
        console.print(f"usage: interp doctor\n\n{TOOLS['doctor']}")
        return
    if words:
        raise UserError(f"interp doctor takes no options, and was given {words[0]!r}")
    findings = diagnose()
    table = Table(show_header=False, box=None, padding=(0, 1))
    for finding in findings:
        # As texts: the name of an extra in square brackets is no markup.
        cells = [Text(cell) for cell in (finding.topic, finding.found, finding.remedy)]
        table.add_row(_mark(finding), *cells)
    console.print(table)
    faults = [finding for finding in findings if not finding.ok]
    if faults:
        console.print(f"\n{len(faults)} to mend: {', '.join(fault.topic for fault in faults)}")
        sys.exit(FAULTS)
    console.print("\nready")


def _mark(finding: Finding) -> Text:
    """A cross for a fault, a dot for what could be added, a tick for the rest."""
    if not finding.ok:
        return Text("✗", style="bold red")
    return Text("•", style="yellow") if finding.remedy else Text("✓", style="green")
