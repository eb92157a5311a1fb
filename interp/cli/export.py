"""``interp export``: write a directory to hand over, and say what is in it."""

from typing import Any

from rich.console import Console

from interp.cli.commands import print_next, print_sentences
from interp.cli.config import settings_of
from interp.cli.options import ExportOptions
from interp.commands.export import ExportSettings, export_run
from interp.errors import UserError
from interp.exported.bake_cost import bake_sentences


def export(options: ExportOptions, console: Console) -> None:
    """Write the directory; see ``interp.commands.export``."""
    if options.to is None:
        raise UserError("say where the directory is to be: --to DIR")
    settings: Any = settings_of(ExportSettings, options)
    cost = export_run(
        options.run,
        options.to,
        settings,
        model=options.model,
        device=options.device,
        allow_pickle=options.allow_pickle,
    )
    print_sentences(bake_sentences(cost), console)
    print_next(f"exported: {options.to}   its card: {options.to / 'README.md'}", console)
