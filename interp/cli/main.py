"""Dispatch: parse, run, and turn a user's mistake into one line and exit code 2."""

import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from interp.cli.summaries import COMMANDS, FAMILIES
from interp.errors import UserError
from interp.files.text import one_line

USERS = frozenset(
    {
        errno.ENAMETOOLONG,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENOSPC,
        errno.EROFS,
        errno.EDQUOT,
    }
)
"""What a path that the user gave may meet, however far inside; any other OSError is a bug."""
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``interp``; exits with 0, 2 for a user's mistake, or 130 when interrupted.

    Where nobody reads its output to the end (``interp … | head``) it stops without a word, with the
    code that a shell gives to what SIGPIPE ends.
    """
    try:
        try:
            _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # what is left to write is written here, not as Python ends
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


class _Output(Console):
    """A console that leaves a broken pipe to ``main``."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _nobody_reads() -> bool:
    """Whether it is standard output, and no other pipe, that is broken."""
    if not hasattr(select, "poll"):
        return True
    try:
        watching = select.poll()
        watching.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in watching.poll(0))
    except (OSError, ValueError):
        return False


def _dispatch(words: list[str]) -> None:
    console, errors = _Output(), Console(stderr=True)
    if not words or words[0] in ("-h", "--help"):
        _overview(console)
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from interp import __version__

        console.print(f"faithlens {__version__}", highlight=False)
        return
    if words[0] not in (*COMMANDS, *FAMILIES):
        known = ", ".join((*COMMANDS, *FAMILIES))
        _fail(errors, f"unknown command {words[0]!r}; known: {known}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger = logging.getLogger("interp")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        if words[0] in FAMILIES:
            _families()[words[0]](words[1:], console)
        else:
            _run_command(words[0], words[1:], console)
    except UserError as error:
        _fail(errors, str(error))
    except OSError as error:
        if error.errno not in USERS:
            raise
        named = f"{one_line(error.filename)}: " if error.filename else ""
        _fail(errors, f"{named}{error.strerror or one_line(error)}")
    except KeyboardInterrupt:
        errors.print("interrupted: the same command again takes up what is finished")
        sys.exit(130)
    finally:
        logger.setLevel(before)  # a caller in the same process keeps its own level


def _run_command(name: str, words: list[str], console: Console) -> None:
    # Imported late: `interp --help` should not wait for transformers and TransformerLens.
    from interp.cli import commands
    from interp.cli.explore import explore
    from interp.cli.options import parse
    from interp.cli.patch import patch
    from interp.cli.probe import probe

    actions: dict[str, Callable[[Any, Console], None]] = {
        "demo": commands.demo,
        "locate": commands.locate,
        "evaluate": commands.evaluate,
        "report": commands.report,
        "explore": explore,
        "premises": commands.premises,
        "probe": probe,
        "patch": patch,
    }
    actions[name](parse(name, words), console)


def _families() -> dict[str, Callable[[list[str], Console], None]]:
    from interp.cli.moelora import moelora

    return {"moelora": moelora}


def _fail(errors: Console, message: str) -> None:
    errors.print("error:", style="bold red", end=" ")
    errors.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def _overview(console: Console) -> None:
    console.print("interp: find and constrain the heads behind false-premise hallucination\n")
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, text in (*COMMANDS.items(), *FAMILIES.items()):
        table.add_row(f"interp {name}", text)
    console.print(table)
    console.print("\ninterp COMMAND --help shows a command's options.")
