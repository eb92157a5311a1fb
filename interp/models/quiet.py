"""Loading without progress bars, log lines and warnings, and with readable errors."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

from interp.errors import UserError
from interp.files.text import one_line


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence transformers and accelerate below errors, and all warnings, while open."""
    dispatching = logging.getLogger("accelerate.big_modeling")
    level = dispatching.level
    dispatching.setLevel(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        dispatching.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def reading(what_failed: str) -> Iterator[None]:
    """Read files quietly; any error, which readers raise on damaged files, becomes a UserError.

    Args:
        what_failed: the beginning of the message, such as ``cannot read the weights of gpt2``.
    """
    with quiet_libraries():
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{what_failed}: {one_line(error)}") from error
