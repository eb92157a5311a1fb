"""Models converted from GGUF, kept in the cache as directories that transformers reads.

A directory appears whole or not at all: it is built beside its final place under a lock and then
renamed. ``faithlens.json`` in it records what it was made from, the size of every file and the
fingerprint of the weights, so that damage is noticed and the directory made anew.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError

from interp.errors import UserError
from interp.files.text import one_line
from interp.files.whole import move_into_place
from interp.models.fingerprint import fingerprint_of_folder
from interp.models.gguf_places import check_gguf_places
from interp.models.quiet import quiet_libraries
from interp.models.whole import load_whole

logger = logging.getLogger(__name__)

RECORD = "faithlens.json"
_FORMAT = 2
"""Of the record. The weights behind one of format 1 may lack some, which were then random."""


def keep_converted(
    folder: Path,
    build: Callable[[Path], None],
    *,
    source_sha256: str,
    known_whole: bool = False,
) -> Path:
    """`folder`, if it is whole and made from the source of that hash; else built anew first.

    `build` fills the empty directory it is given with configuration, safetensors and tokenizer.
    Two processes may ask at once: one builds, the other waits. With `known_whole` the source is
    known to lack no weight, so that a directory of an older format serves too. Raises UserError if
    the cache cannot be written, and whatever `build` raises.
    """
    formats = range(1 if known_whole else _FORMAT, _FORMAT + 1)
    if _is_whole(folder, source_sha256, formats):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
            if not _is_whole(folder, source_sha256, formats):
                _build_anew(folder, build, source_sha256)
    except OSError as error:
        raise UserError(
            f"cannot write the converted model to {folder.parent} ({error.strerror or error}): "
            "free some space, or set FAITHLENS_CACHE to another directory"
        ) from error
    return folder


def convert_gguf(gguf: Path, into: Path, *, name: str) -> None:
    """Convert the GGUF file to float32 safetensors, with its tokenizer, in the directory `into`.

    Any architecture that transformers reads from GGUF. `name` is what the user called the model.
    Raises UserError if the file is damaged, of another architecture, or not whole: a tensor is
    missing, or has no place in the model.
    """
    from transformers import AutoTokenizer

    logger.info("converting %s to safetensors, once", name)
    with quiet_libraries():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
            )
            model = load_whole(
                gguf.parent, spec=name, gguf_file=gguf.name, **_dequantized(), dtype="float32"
            )
            check_gguf_places(gguf, model, name)
        except UserError:
            raise
        except Exception as error:  # the readers of the format raise anything on a damaged file
            raise UserError(f"cannot read the GGUF file {name}: {one_line(error)}") from error
        _forget_quantization(model)
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)


def convert_pickled(folder: Path, into: Path, *, name: str) -> None:
    """Convert a directory's pickled weights to safetensors, with its tokenizer, in `into`.

    torch opens them with ``weights_only``. Raises UserError if they hold anything but weights, or
    not those of the model that the configuration describes.
    """
    from transformers import AutoTokenizer

    with quiet_libraries():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model = load_whole(
                folder, spec=name, use_safetensors=False, weights_only=True, dtype="auto"
            )
        except UserError:
            raise
        except Exception as error:  # the readers raise anything on a damaged file
            raise UserError(f"cannot read the weights of {name}: {one_line(error)}") from error
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def _dequantized() -> dict[str, Any]:
    """Newer transformers can leave GGUF blocks packed; hooks and gradients need plain weights."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _forget_quantization(model: Any) -> None:
    """The weights are plain by now, but transformers would refuse to save what was quantized."""
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _build_anew(folder: Path, build: Callable[[Path], None], source_sha256: str) -> None:
    prefix = f".partial-{folder.name}-"
    for left_over in folder.parent.glob(f"{prefix}*"):  # of a run that was killed; we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        build(partial)
        record = {
            "format": _FORMAT,
            "source_sha256": source_sha256,
            "fingerprint": fingerprint_of_folder(partial),
            "files": {file.name: file.stat().st_size for file in sorted(partial.iterdir())},
        }
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():
            logger.warning("the cached model in %s is damaged and was made anew", folder)
            shutil.rmtree(folder)
        move_into_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(folder: Path, source_sha256: str, formats: range) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["format"] not in formats or record["source_sha256"] != source_sha256:
            return False
        if any((folder / name).stat().st_size != size for name, size in record["files"].items()):
            return False
        cache = folder.parent.parent / "fingerprints"
        return fingerprint_of_folder(folder, cache=cache) == record["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return False
