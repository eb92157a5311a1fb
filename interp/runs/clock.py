"""The moment at which a run's chat templates are rendered: one for the whole run.

If the model's template reads the clock, the run writes the moment at which it began next to its
identity. It is not compared: the run goes on with that moment whenever it is continued, so that all
its prompts have one date. If no template reads the clock nothing is written.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from interp.errors import UserError
from interp.files.documents import read_json
from interp.models.template_clock import reads_clock, template_now, template_time
from interp.runs.lock import around_run

MOMENT = "template_time"

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def with_clock(identity: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The identity as it is written, with the moment where the tokenizer's template reads it."""
    if not reads_clock(tokenizer):
        return dict(identity)
    return {**identity, MOMENT: template_now().isoformat()}


def run_clock(run: Path, file: str) -> AbstractContextManager[None]:
    """Render chat templates at the moment that a run began with, or else at the present one.

    Args:
        file: the name of the file that holds the run's identity.

    Raises:
        UserError: the file holds something else in place of a moment.
    """
    path = run / file
    written = read_json(path).get(MOMENT) if path.is_file() else None
    if written is None:
        return template_time(template_now())
    try:
        return template_time(datetime.fromisoformat(written))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({MOMENT} is {written!r}, which is no date): make the run again in "
            "another directory"
        ) from error


def one_moment(
    file: str,
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Let a function, whose argument ``run`` is a run's directory, render at the run's moment."""
    return around_run(lambda run: run_clock(run, file))
