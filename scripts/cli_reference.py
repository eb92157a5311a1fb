"""Write docs/reference/cli.md from what the commands say of themselves.

    python scripts/cli_reference.py [--check]

Every section is the text of ``interp COMMAND --help``, as a terminal of 80 columns shows it, so
that the page cannot say anything else than the program. ``--check`` writes nothing, and exits with
code 1 if the page is out of step.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
COLUMNS = 80

HEAD = """\
# Command line

Made by `scripts/cli_reference.py` from the commands' own help.

Every command takes `--config FILE.yaml`, whose keys are its options; an option on the command line
wins. A command that makes a run directory writes what it ran with there, as `config.yaml`, so that
`interp COMMAND --config RUN/config.yaml --out OTHER` repeats it; `evaluate` goes on in a run and
says in `evaluation.json` what it did. A mistake is one line on the standard error and exit code 2;
an interruption, exit code 130; the same command again takes an interrupted run up.
"""


@contextmanager
def plain_terminal() -> Iterator[None]:
    """A terminal of fixed width without colours, whatever the page is made in."""
    with patch.dict(os.environ, {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}):
        os.environ.pop("FORCE_COLOR", None)
        yield


def help_of(words: Iterable[str]) -> str:
    """What ``interp WORDS --help`` prints."""
    from interp.cli import main

    shown = io.StringIO()
    with plain_terminal(), redirect_stdout(shown), suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines()).strip("\n")


def commands() -> list[tuple[str, ...]]:
    """Every command by its words, families before their members; first the program itself."""
    from interp.cli.moelora import OPTIONS
    from interp.cli.summaries import COMMANDS, FAMILIES, TOOLS

    members = {"moelora": OPTIONS}
    found: list[tuple[str, ...]] = [(), *((name,) for name in COMMANDS)]
    for family in FAMILIES:
        found += [(family,), *((family, name) for name in members[family])]
    return [*found, *((name,) for name in TOOLS)]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for words in commands():
        name = " ".join(("interp", *words))
        parts.append(f"\n## {name}\n\n```text\n{help_of(words)}\n```\n")
    return "".join(parts)


def main() -> None:
    """Write the page, or say whether it is in step."""
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is out of step: run python scripts/cli_reference.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
