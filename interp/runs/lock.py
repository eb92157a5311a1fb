"""One process per run directory: a second one is refused, and told who holds it.

The lock is the operating system's own on the file ``.lock`` in the directory, so that it ends with
its holder, however that ends; ``.lock.json`` names the holder. Both are removed when the run is
released. A process may take a run again that it already holds (one run made of several).
"""

import functools
import inspect
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from interp.errors import UserError
from interp.files.whole import remove_leftovers, write_whole

LOCK, HOLDER = ".lock", ".lock.json"

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_of_thread = threading.local()


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """Hold a run directory, which is made if it is missing, and removed if it stays empty.

    Raises:
        UserError: another process (or thread) holds it, or it cannot be written.
    """
    folder = run.resolve()
    taken: set[Path] = _of_thread.__dict__.setdefault("taken", set())
    # Of several processes, the first holds.
    if folder in taken or os.environ.get("RANK", "0") != "0":
        yield
        return
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run} cannot be made ({error.strerror}): choose another --out") from error
    try:
        with _locked(run):
            taken.add(folder)
            try:
                yield
                remove_leftovers(folder)
            finally:
                taken.discard(folder)
    finally:
        for above in missing:
            with suppress(OSError):  # not empty
                above.rmdir()


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{run} is being written by {_holder(run)}: wait for it, or choose another directory"
        ) from None
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error.strerror or error})") from error
    try:
        content = {"pid": os.getpid(), "host": socket.gethostname()}
        write_whole(run / HOLDER, json.dumps(content).encode())
        yield
    finally:
        # Removed while it is held: who opened the old file sees that it has no name any more.
        for name in (HOLDER, LOCK):
            with suppress(OSError):
                (run / name).unlink(missing_ok=True)
        lock.release()


def _holder(run: Path) -> str:
    """Who holds a run, in words."""
    try:
        content = json.loads((run / HOLDER).read_text("utf-8"))
        return f"process {int(content['pid'])} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def check_free(run: Path) -> None:
    """Raise UserError if another process holds a run: to know before anything slow is done."""
    if run.is_dir():
        with holding(run):
            pass


def around_run(
    context: Callable[[Path], AbstractContextManager[Any]],
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """A decorator that runs a function inside ``context(run)``, of its argument ``run``."""

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            with context(signature.bind(*args, **kwargs).arguments["run"]):
                return function(*args, **kwargs)

        return wrapped

    return decorate


def one_process(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Hold the directory that is the function's argument ``run`` while the function runs."""
    return around_run(holding)(function)
