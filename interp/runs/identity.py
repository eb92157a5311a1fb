"""Which run a directory holds: one run a directory.

What decides a run's outcome (settings, fingerprints of model, tokenizer and chat template, the
data's hash, the prompts' tokens) is written into it first, as its identity. The same command again
takes up what is there; another is refused. So is a run of an older version, which did not note
tokenizer and prompts: what it left can be read, but nobody can tell whether more would fit to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files import check_links
from interp.files.documents import read_json, write_json
from interp.files.whole import LEFTOVER
from interp.models import model_info
from interp.models.hooked_model import HookedModel
from interp.runs.lock import HOLDER, LOCK
from interp.runs.prompting import (
    comparable,
    first_difference,
    not_noted,
    tokenizer_identity,
    warn_of_older,
)


def check_run(run: Path, file: str, identity: Mapping[str, Any]) -> None:
    """Raise unless ``run`` is new, empty, or holds the run of this identity.

    Args:
        file: the name of the file that holds the identity.
        identity: as JSON gives it back; keys that are left out are not compared.

    Raises:
        UserError: the directory holds another run, or something else.
    """
    path = run / file
    if not path.is_file():
        if run.exists() and (not run.is_dir() or any(map(_is_something, run.iterdir()))):
            raise UserError(
                f"{run} holds something else (it is not empty and not a run of this kind): choose "
                "another --out"
            )
        return
    check_links(run)
    before = read_json(path)
    if difference := first_difference(before, comparable(before, identity)):
        raise UserError(
            f"{run} holds another run ({difference}): choose another --out, or delete that one"
        )
    if unknown := not_noted(before, identity):
        raise UserError(
            f"{run} was begun by an older version, which did not note {unknown}: what it holds can "
            "be read, but not taken up; choose another --out"
        )


def model_identity(model: HookedModel) -> dict[str, Any]:
    """What a run's identity holds of its hooked model and of its tokenizer."""
    info = model_info(model)
    return {
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
        **tokenizer_identity(model.tokenizer),
    }


def check_finished(run: Path, file: str, identity: Mapping[str, Any]) -> None:
    """`check_run` for a run that is given back as it is: an older version's too, with a warning."""
    before = read_json(run / file) if (run / file).is_file() else identity
    warn_of_older(run, before, identity)
    check_run(run, file, comparable(before, identity))


def _is_something(path: Path) -> bool:
    """Whether a file is more than what a process leaves that was killed before it began."""
    if path.is_dir():
        return any(path.iterdir())
    return path.name not in (LOCK, HOLDER) and LEFTOVER.fullmatch(path.name) is None


def begin_run(run: Path, file: str, identity: Mapping[str, Any]) -> None:
    """Make the directory of a checked run and write its identity, unless it is there already.

    Raises:
        UserError: the directory cannot be made.
    """
    if (run / file).is_file():
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run} cannot be made ({error.strerror}): choose another --out") from error
    write_json(run / file, identity)


def claim_run(
    run: Path, file: str, identity: Mapping[str, Any], *, beside: Mapping[str, Any] | None = None
) -> None:
    """`check_run`, then `begin_run`: for a run that needs nothing else before it begins.

    Args:
        beside: written with the identity, but not compared.
    """
    check_run(run, file, identity)
    begin_run(run, file, {**identity, **(beside or {})})
