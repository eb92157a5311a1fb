"""Which run a directory holds: one run a directory.

What decides a run's outcome (settings, the model's fingerprint, the data's hash) is written into
it first, as its identity. The same command again takes up what is there; another is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files import LEFTOVER
from interp.models import model_info
from interp.runs.lock import HOLDER, LOCK
from interp.runs.store import read_json, write_json
from interp.untrusted import check_links


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
    if differs := sorted(key for key in identity if before.get(key) != identity[key]):
        key = differs[0]
        raise UserError(
            f"{run} holds another run ({key} was {before.get(key)!r}, now {identity[key]!r}): "
            "choose another --out, or delete that one"
        )


def model_identity(model: Any) -> dict[str, str]:
    """What a run's identity holds of its hooked model."""
    info = model_info(model)
    return {"fingerprint": info.fingerprint, "dtype": info.dtype}


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


def claim_run(run: Path, file: str, identity: Mapping[str, Any]) -> None:
    """`check_run`, then `begin_run`: for a run that needs nothing else before it begins."""
    check_run(run, file, identity)
    begin_run(run, file, identity)
