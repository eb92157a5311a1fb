"""Dispatch: parse, run, and turn a user's mistake into one line and exit code 2."""

import errno
import logging
import os
import select
import signal
import sys

from rich.console import Console
from rich.table import Table

from interp import __version__
from interp.cli.summaries import COMMANDS, FAMILIES, TOOLS
from interp.errors import UserError
from interp.files.text import one_line

USER_ERRORS = frozenset(
    (
        *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR),
        *(errno.ELOOP, errno.ENOSPC, errno.EROFS, errno.EDQUOT),
    )
)
"""Codes of an OSError that a user's path or disk can cause; any other OSError is a bug."""
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``interp``; exits with 0, 2 for a user's mistake, or 130 when interrupted.

    If its output is no longer read (``interp … | head``), it exits silently with the code that a
    shell gives to a process ended by SIGPIPE.
    """
    try:
        try:
            _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # a broken pipe shows here, not while Python shuts down
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


class _Output(Console):
    """A console that lets ``main`` handle a broken pipe."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _output_is_closed() -> bool:
    """Whether the broken pipe is standard output, and not another one."""
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
        console.print(f"faithlens {__version__}", highlight=False)
        return
    if words[0] not in (*COMMANDS, *FAMILIES, *TOOLS):
        known = ", ".join((*COMMANDS, *FAMILIES, *TOOLS))
        _fail(errors, f"unknown command {words[0]!r}; known: {known}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger = logging.getLogger("interp")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        _run(words[0], words[1:], console)
    except UserError as error:
        _fail(errors, str(error))
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        named = f"{one_line(error.filename)}: " if error.filename else ""
        _fail(errors, f"{named}{error.strerror or one_line(error)}")
    except KeyboardInterrupt:
        errors.print("interrupted: the same command again takes up what is finished")
        sys.exit(130)
    finally:
        logger.setLevel(before)  # for a caller in the same process


def _run(name: str, words: list[str], console: Console) -> None:
    # Imported here, since they import transformers and TransformerLens, which `interp --help` does
    # not; `doctor` runs where these cannot be imported.
    if name in TOOLS:
        from interp.cli.doctor import doctor

        doctor(words, console)
    elif name in FAMILIES:
        from interp.cli.moelora import moelora

        moelora(words, console)
    else:
        from interp.cli import asking, card, circuit, commands, export, harness, options

        modules = {
            "ask": asking,
            "card": card,
            "circuit": circuit,
            "detect": asking,
            "export": export,
            "harness": harness,
        }
        getattr(modules.get(name, commands), name)(options.parse(name, words), console)


def _fail(errors: Console, message: str) -> None:
    errors.print("error:", style="bold red", end=" ")
    errors.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def _overview(console: Console) -> None:
    console.print("interp: find and constrain the heads behind false-premise hallucination\n")
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, text in (*COMMANDS.items(), *FAMILIES.items(), *TOOLS.items()):
        table.add_row(f"interp {name}", text)
    console.print(table)
    console.print("\ninterp COMMAND --help shows a command's options.")
