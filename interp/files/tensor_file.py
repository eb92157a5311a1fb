"""Safetensors files with a checksum, and with the same bytes whenever the content is the same.

The library writes its metadata in an order that differs from process to process; here the header
is written with sorted keys. Its metadata holds ``sha256``, the digest of the rest of the header
and of all tensors, so that one altered byte anywhere is found when the file is read.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from interp.errors import UserError
from interp.files.tensors import parse_tensors
from interp.files.text import parse_json
from interp.files.whole import write_whole

CHECKSUM = "sha256"
_ALIGNED = 8


def write_tensor_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write tensors and texts. Raises UserError if the file cannot be written."""
    return write_whole(path, tensor_bytes(tensors, metadata))


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the texts of a file that `write_tensor_file` wrote.

    Raises:
        FileNotFoundError: no file.
        UserError: a file that was not written by it, is cut off, or was altered since; the message
            names neither file nor remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from error
    return parse_tensor_bytes(content)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | None], kept: Mapping[str, Any]
) -> Path:
    """Write the tensors that are not None, and ``kept`` as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    there = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    return write_tensor_file(path, there, {key: json.dumps(value) for key, value in kept.items()})


def read_tensors(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what was kept under these names.

    Raises:
        FileNotFoundError: no file.
        UserError: a name that is missing, or a damaged file; the message does not name the file.
    """
    tensors, texts = read_tensor_file(path)
    missing = [name for name in names if name not in texts]
    if missing:
        raise UserError(f"it has no {missing[0]}")
    return tensors, {name: parse_json(texts[name]) for name in names}


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's content."""
    here = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header, data = _split(save(here))
    texts = {name: text for name, text in metadata.items() if name != CHECKSUM}
    header["__metadata__"] = texts
    header["__metadata__"] = {**texts, CHECKSUM: checksum(header, data)}
    text = _canonical(header)
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text + data


def parse_tensor_bytes(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `tensor_bytes` was given. Raises UserError for anything else."""
    tensors = parse_tensors(content)  # after which the header is known to be sound
    header, data = _split(content)
    texts = dict(header.get("__metadata__") or {})
    recorded = texts.pop(CHECKSUM, None)
    if recorded is None:
        raise UserError("it has no checksum, as files of earlier versions have none")
    header["__metadata__"] = texts
    if recorded != checksum(header, data):
        raise UserError("its checksum is not that of its content")
    return tensors, texts


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def checksum(header: Mapping[str, Any], data: bytes) -> str:
    """SHA-256 of a header whose metadata has no checksum yet, and of what stands behind it."""
    return hashlib.sha256(_canonical(header) + data).hexdigest()


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
