"""The one error type that a user's mistake raises."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 4000


class UserError(Exception):
    """Something the user can mend: the message is one line that says what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2. A message may repeat a
    word of a file that somebody else made; line ends, terminal codes and whatever else does not
    print are shown as escapes.
    """

    def __str__(self) -> str:
        """The message, as one line that prints."""
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}…"
        if text.isprintable():
            return text
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@contextmanager
def errors_in(where: str | Path) -> Iterator[None]:
    """Begin the messages of UserErrors with the file, or the part of it, that they are about.

    A message that names it already, such as a reader's, stays as it is.
    """
    try:
        yield
    except UserError as error:
        named = str(error).startswith(f"{where}: ")
        raise UserError(str(error) if named else f"{where}: {error}") from error
