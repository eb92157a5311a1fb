"""The one error type that a user's mistake raises."""


class UserError(Exception):
    """Something the user can mend: the message is one line that says what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
