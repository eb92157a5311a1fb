"""A fingerprint identifies a model by what it computes with: its configuration and its weights.

It is the SHA-256 of the configuration as canonical JSON, without the keys that only say where the
model came from or how it was loaded, followed by each tensor's name, dtype, shape and bytes in
order of name. Splitting the same weights into more files changes nothing; one changed weight does.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from interp.errors import UserError
from interp.files.whole import write_whole

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_VOLATILE_KEYS = (
    *("_attn_implementation", "_attn_implementation_internal", "_commit_hash", "_name_or_path"),
    *("attn_implementation", "dtype", "output_attentions", "torch_dtype", "transformers_version"),
)


def fingerprint_of_folder(folder: Path, *, cache: Path | None = None) -> str:
    """The fingerprint of the model in `folder` (``config.json`` and its weights), as hex.

    Args:
        cache: a directory in which the answer is remembered as long as no weight file changes its
            size or time of change; nothing is ever written into `folder`.

    Raises:
        OSError, safetensors.SafetensorError: a file cannot be read.
    """
    folder = Path(folder).resolve()
    files = weight_files(folder)
    config_bytes = (folder / "config.json").read_bytes()
    remembered = None if cache is None else cache / f"{_state_of(files, config_bytes)}.txt"
    if remembered is not None and remembered.is_file():
        text = remembered.read_text(encoding="ascii").strip()
        if len(text) == 64:
            return text
    digest = _digest(json.loads(config_bytes), _tensors_of(files))
    if remembered is not None:
        with contextlib.suppress(OSError, UserError):  # not remembering it only costs time
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_whole(remembered, digest.encode())
    return digest


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a directory that transformers reads, in order of name.

    ``model.safetensors`` alone where it is there, else what the index names, else all of them.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        named = {folder / str(name) for name in content["weight_map"].values()}
        if named:
            return sorted(named)
    return sorted(folder.glob("*.safetensors"))


def fingerprint_of_model(model: nn.Module, config: dict[str, Any] | None = None) -> str:
    """The fingerprint of a model in memory, over its ``state_dict``, as hex.

    `config` defaults to the model's own transformers configuration, if it has one. A model in
    memory names tied weights twice and may have another dtype than its file, so this agrees with
    `fingerprint_of_folder` only about being the same or not among models in memory.
    """
    if config is None:
        to_dict: Any = getattr(getattr(model, "config", None), "to_dict", dict)
        config = to_dict()
    return _digest(config, sorted(model.state_dict().items()))


def _digest(config: dict[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    sha = hashlib.sha256()
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    sha.update(json.dumps(kept, sort_keys=True, ensure_ascii=True, default=str).encode())
    for name, tensor in tensors:
        sha.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # Reinterpreted as bytes, because numpy knows no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha.update(flat.numpy().data)
    return sha.hexdigest()


def _tensors_of(files: list[Path]) -> Iterable[tuple[str, Tensor]]:
    """Every tensor of the files in order of name, one in memory at a time."""
    where: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            where.update(dict.fromkeys(opened.keys(), file))
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as opened:
            yield name, opened.get_tensor(name)


def _state_of(files: list[Path], config_bytes: bytes) -> str:
    """What must stay the same for a remembered fingerprint to hold."""
    sha = hashlib.sha256(config_bytes)
    for file in files:
        stat = file.stat()
        sha.update(f"\0{file}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return sha.hexdigest()
