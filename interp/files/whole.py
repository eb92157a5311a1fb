"""Files written completely or not at all: also after a kill, a full disk, a power cut.

The content goes to a temporary file next to its target, is flushed to the disk, and is moved into
place; then the directory is flushed too, so that the new name itself is not lost. A reader sees
the old file or the new one, and nothing else.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from interp.errors import UserError

LEFTOVER = re.compile(r"\..+\.\d+\.part")
"""Names of temporary files, which a killed process leaves behind."""


def write_whole(target: Path, content: bytes) -> Path:
    """Write a file. Raises UserError if that fails; the old file is then unchanged."""
    beside = beside_of(target)
    try:
        beside.unlink(missing_ok=True)  # a link to elsewhere would be written through
        _write_flushed(beside, content)
        os.replace(beside, target)
        flush_folder(target.parent)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return target


def beside_of(target: Path) -> Path:
    """Where a file or a directory is made before it is moved into place."""
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def move_into_place(beside: Path, target: Path) -> Path:
    """Flush what another library wrote, a file or a directory of files, and give it its name.

    Raises:
        OSError: it cannot be done. A directory replaces none that has anything in it.
    """
    for path in (*sorted(beside.rglob("*"), reverse=True), beside):  # what is inside comes first
        if path.is_dir():
            flush_folder(path)
        else:
            _flush(path, os.O_RDONLY)
    os.replace(beside, target)
    flush_folder(target.parent)
    return target


def _write_flushed(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Flush a directory's names to the disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    _flush(folder, os.O_RDONLY | os.O_DIRECTORY)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and directories that killed processes left in a directory."""
    for path in folder.iterdir():
        if not LEFTOVER.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
