"""The command line ``interp COMMAND``: options and output; see ``interp.commands``."""

from interp.cli.main import main

__all__ = ["main"]
