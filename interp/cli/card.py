"""``interp card``: the command that writes pages about heads of a run."""

from rich.console import Console

from interp.cli.commands import load, print_next, run_options
from interp.cli.config import settings_of
from interp.cli.options import CardOptions
from interp.commands.card import CardSettings, card_run
from interp.runs.lock import check_free


def card(options: CardOptions, console: Console) -> None:
    """Write pages about heads of a run; see ``interp.commands.card``."""
    settings = settings_of(CardSettings, options)
    check_free(options.run)
    model = load(run_options(options), console)
    for path in card_run(model, options.run, settings):
        print_next(f"card: {path}", console)
