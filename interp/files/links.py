"""Names and links from strangers: they must stay inside their directory.

A run directory that somebody sends may hold symbolic links; writing through one, or clearing a
directory behind one, would change files outside the run.
"""

import os
import re
from pathlib import Path

from interp.errors import UserError

_PLAIN = re.compile(r"[\w-][\w .-]*", re.ASCII)


def plain_name(name: object, what: str) -> str:
    """A name from data, if it can name one file in a directory. Raises UserError otherwise."""
    if not isinstance(name, str) or len(name) > 200 or not _PLAIN.fullmatch(name):
        shown = repr(name)[:60]
        raise UserError(f"{what} is named {shown}: only letters, digits, '.', '_', '-' and blanks")
    return name


def check_links(folder: Path) -> None:
    """Raise UserError if a symbolic link in a directory leads out of it."""
    inside = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if not os.path.islink(path):
                continue
            target = os.path.realpath(path)
            if os.path.commonpath([inside, target]) != inside:
                raise UserError(
                    f"{folder} holds a link that leads out of it ({os.path.relpath(path, folder)})"
                    ": put the file itself there, or delete the link"
                )
