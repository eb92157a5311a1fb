"""The command line: ``interp COMMAND``. It holds no logic; see ``interp.runs``."""

from interp.cli.main import main

__all__ = ["main"]
