"""``interp harness``: tasks of lm-evaluation-harness without and with the heads of a run."""

from rich.console import Console

from interp.cli.config import settings_of
from interp.cli.options import HarnessOptions
from interp.commands.harness import OUT, TABLE, HarnessSettings, harness_run
from interp.figures.tables import rich_table


def harness(options: HarnessOptions, console: Console) -> None:
    """Run the tasks and print the table; see ``interp.commands.harness``."""
    compared = harness_run(
        options.run,
        settings_of(HarnessSettings, options),
        output=options.output,
        model=options.model,
        device=options.device,
        dtype=options.dtype,
    )
    table = compared.table().map(lambda cell: str(cell).replace(" [", "\n["))
    console.print(rich_table(table, title="without and with the constraint"))
    folder = options.run / OUT if options.output is None else options.output
    console.print(f"\nresults: {folder / TABLE}", highlight=False, soft_wrap=True)
