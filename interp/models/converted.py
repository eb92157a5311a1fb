"""Models converted from GGUF, kept in the cache as directories that transformers reads.

A directory is written completely or not at all: it is built under a lock in a temporary directory,
which is then renamed. Its ``faithlens.json`` records the source, the size of every file and the
fingerprint of the weights, so that a damaged directory is noticed and rebuilt.
"""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import gguf as gguf_library
import numpy as np
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer

from interp.errors import UserError
from interp.files.gguf_header import tensor_counts
from interp.files.whole import move_into_place
from interp.models.fingerprint import fingerprint_of_folder
from interp.models.quiet import quiet_libraries, reading
from interp.models.whole import load_whole

logger = logging.getLogger(__name__)

RECORD = "faithlens.json"
_FORMAT = 2
"""Of the record. The weights behind one of format 1 may lack some, which were then random."""

_FACTORS = re.compile(r"(?:^|\.)rope_(?:freqs|factors_\w+)\.weight$")
"""What the rotary embedding's frequencies are divided by: one each where nothing is scaled."""
_TABLES = re.compile(r"(?:^|\.)attn_rot_embd\.")
_BLOCK = re.compile(r"^blk\.(\d{1,9})\.")


def keep_converted(
    folder: Path, build: Callable[[Path], None], *, source_sha256: str, known_whole: bool = False
) -> Path:
    """`folder`, if it is whole and made from the source of that hash; else built anew first.

    Two processes may ask at once: one builds, the other waits.

    Args:
        build: fills an empty directory with configuration, safetensors and tokenizer.
        known_whole: the source is known to lack no weight, so that a directory of an older format
            serves too.

    Raises:
        UserError: the cache cannot be written; also whatever `build` raises.
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
    """Convert a GGUF file to float32 safetensors, with its tokenizer, in the directory `into`.

    Any architecture that transformers reads from GGUF can be converted.

    Args:
        name: what the user called the model.

    Raises:
        UserError: a damaged file, another architecture, or a tensor that is missing or has no place
            in the model.
    """
    logger.info("converting %s to safetensors, once", name)
    # Newer transformers can leave GGUF blocks packed; hooks and gradients need plain weights.
    plain: Any = getattr(transformers, "GgufConfig", None)
    options = {} if plain is None else {"quantization_config": plain(dequantize=True)}
    with reading(f"cannot read the GGUF file {name}"), _kept_name_maps():
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
        )
        model = load_whole(gguf.parent, spec=name, gguf_file=gguf.name, **options, dtype="float32")
        check_gguf_places(gguf, model, name)
    with quiet_libraries():
        _forget_quantization(model)
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)


def convert_pickled(folder: Path, into: Path, *, name: str) -> None:
    """Convert a directory's pickled weights to safetensors, with its tokenizer, in `into`.

    torch opens them with ``weights_only``.

    Raises:
        UserError: they hold anything but weights, or those of another model than the configuration
            describes.
    """
    with reading(f"cannot read the weights of {name}"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model = load_whole(
            folder, spec=name, use_safetensors=False, weights_only=True, dtype="auto"
        )
    with quiet_libraries():
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)


def check_gguf_places(path: Path, model: Any, spec: str) -> None:
    """Raise UserError for a tensor of a GGUF file that has no place in the model read from it.

    transformers takes the tensors that it knows out of a GGUF file and skips the others silently:
    layers beyond the block count, biases or norms that its class does not have, and the factors of
    a scaled rotary embedding. How many numbers the file holds, compared with the model, says
    whether anything was skipped; the ``gguf`` package's table of names says what.

    Args:
        model: the transformers model that was read from the file, each of its weights found there.
        spec: what the user called the model, for messages.
    """
    counts = tensor_counts(path)
    sizes = {
        name: count
        for name, count in counts
        if not _FACTORS.search(name) and not _TABLES.search(name)
    }
    weights = {id(weight): weight.numel() for weight in model.state_dict(keep_vars=True).values()}
    has_room = sum(sizes.values()) <= sum(weights.values())
    if has_room and not any(_FACTORS.search(name) for name, _ in counts):
        return  # without the library's reader, which takes seconds for a large vocabulary
    reader = gguf_library.GGUFReader(path)
    _check_factors(reader, spec)
    if has_room:
        return
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    known = _known_names(reader, model, n_layers)
    beyond = [name for name in sizes if (found := _BLOCK.match(name)) and int(found[1]) >= n_layers]
    unplaced = beyond or [name for name in sizes if name not in known]
    if unplaced:
        raise UserError(
            f"{spec}: {len(unplaced)} tensors of the file have no place in the model, such as "
            f"{unplaced[0]}: its header says fewer layers ({n_layers}) than it holds, or it is "
            "damaged; get the file again"
        )


def _check_factors(reader: gguf_library.GGUFReader, spec: str) -> None:
    """Raise UserError for factors that scale the rotary embedding."""
    for tensor in reader.tensors:
        if _FACTORS.search(str(tensor.name)):
            values = gguf_library.dequantize(tensor.data, tensor.tensor_type)
            if not np.all(values == 1):
                raise UserError(
                    f"{spec}: {tensor.name} scales the rotary embedding, which transformers does "
                    "not read from GGUF: the model would compute something else; use it in "
                    "safetensors"
                )


@contextmanager
def _kept_name_maps() -> Iterator[None]:
    """While open, the ``gguf`` package makes each table of names once.

    transformers asks for the same one again for every module of a model.
    """
    make = gguf_library.get_tensor_name_map
    gguf_library.get_tensor_name_map = cache(make)
    try:
        yield
    finally:
        gguf_library.get_tensor_name_map = make


def _known_names(reader: gguf_library.GGUFReader, model: Any, n_layers: int) -> set[str]:
    """The names that the model's weights have in a GGUF file of its architecture."""
    field = reader.get_field("general.architecture")
    architecture = "" if field is None else str(field.contents())
    of_name = {name: code for code, name in gguf_library.MODEL_ARCH_NAMES.items()}
    if architecture not in of_name:
        return set()
    names = gguf_library.get_tensor_name_map(of_name[architecture], n_layers)
    found = (names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict())
    return {name for name in found if name is not None}


def _forget_quantization(model: Any) -> None:
    """Let transformers save weights that are plain now, but were read from a quantized file."""
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
