"""Fingerprints of a model, of its tokenizer, and of its chat template.

A model's identifies what it computes with, its configuration and its weights: it is the SHA-256 of
the configuration as canonical JSON, without the keys that only say where the model came from or how
it was loaded, followed by each tensor's name, dtype, shape and bytes in order of name. Splitting
the same weights into more files changes nothing; one changed weight does.

A tokenizer's is the SHA-256 of everything that decides which ids a text becomes and which text ids
become: vocabulary, merges, added tokens, what is put around a text, normalizer, decoder, and the
special tokens by name. How batches are padded and truncated is left out, because every call sets it
anew. The chat template has a fingerprint of its own, so that a message can say which of the two has
changed.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from interp.errors import UserError
from interp.files.documents import file_hash
from interp.files.whole import write_whole
from interp.models.placement import sorted_state
from interp.quantized import restore_packing

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_VOLATILE_KEYS = (
    *("_attn_implementation", "_attn_implementation_internal", "_commit_hash", "_name_or_path"),
    *("attn_implementation", "dtype", "output_attentions", "torch_dtype", "transformers_version"),
)
_THREADS = 8
"""Files that are hashed at once."""
_BEGINS = '"added_tokens":'
"""Before it, a fast tokenizer's description holds how the latest call padded and cut, no more."""
_SETTINGS = ("split_special_tokens", "clean_up_tokenization_spaces")


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
    path = None if cache is None else cache / f"{_state_of(files, config_bytes)}.txt"
    digest = _remembered(path)
    if digest is None:
        digest = _digest(json.loads(config_bytes), _tensors_of(files))
        _remember(path, digest)
    return digest


def file_hashes(files: Sequence[Path], *, cache: Path | None = None) -> list[str]:
    """The SHA-256 of each file's bytes, as hex; files are hashed side by side.

    Args:
        cache: a directory in which a hash is remembered, as in `fingerprint_of_folder`.

    Raises:
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(min(_THREADS, len(files) or 1)) as threads:  # hashlib frees the GIL
        return list(threads.map(partial(_file_hash, cache=cache), files))


def _file_hash(file: Path, *, cache: Path | None) -> str:
    path = None if cache is None else cache / f"{_state_of([file.resolve()], b'file')}.txt"
    remembered = _remembered(path)
    if remembered is None:
        remembered = file_hash(file)
        _remember(path, remembered)
    return remembered


def _remembered(path: Path | None) -> str | None:
    """The hash in a file of the cache; None if there is none, or half of one."""
    if path is None or not path.is_file():
        return None
    text = path.read_text(encoding="ascii").strip()
    return text if len(text) == 64 else None


def _remember(path: Path | None, digest: str) -> None:
    """Keep a hash in the cache; not being able to only costs time."""
    if path is not None:
        with contextlib.suppress(OSError, UserError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, digest.encode())


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
    """The fingerprint of a model in memory, over its ``state_dict``, as hex; wherever it is.

    `config` defaults to the model's own transformers configuration, if it has one. A model in
    memory names tied weights twice and may have another dtype than its file, so this agrees with
    `fingerprint_of_folder` only about being the same or not among models in memory.
    """
    to_dict: Any = getattr(getattr(model, "config", None), "to_dict", dict)
    restore_packing(model)  # its ``state_dict`` would be wrong
    tensors = (part for named in sorted_state(model) for part in _plain_parts(*named))
    return _digest(to_dict() if config is None else config, tensors)


def _plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that one consists of, with names; a quantized one of torchao has several."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield name, tensor
        return
    for part in flatten()[0]:
        yield from _plain_parts(f"{name}.{type(tensor).__name__}.{part}", getattr(tensor, part))


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


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """The fingerprint of a tokenizer, as hex, without its chat template.

    Raises UserError where there is no tokenizer.
    """
    if tokenizer is None:
        raise UserError("the model has no tokenizer: give one to interp.models.from_hf")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    settings = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
    return _sha256([_described(tokenizer), special, settings])


def template_fingerprint(tokenizer: Any) -> str | None:
    """The fingerprint of a tokenizer's chat template, as hex; None if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    return _sha256(template) if template else None


def prompting_fingerprint(tokenizer: Any) -> str:
    """One fingerprint of tokenizer and chat template, as hex."""
    return _sha256([tokenizer_fingerprint(tokenizer), template_fingerprint(tokenizer)])


def _described(tokenizer: Any) -> Any:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        whole = fast.to_str()
        return whole[max(0, whole.find(_BEGINS)) :]
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [
        type(tokenizer).__name__,
        sorted(tokenizer.get_vocab().items()),
        sorted((number, repr(token)) for number, token in added.items()),
        _files(tokenizer),
    ]


def _files(tokenizer: Any) -> dict[str, str]:
    """The files of a slow tokenizer, which hold its merges or its model, by name."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_vocabulary(folder)
        except (NotImplementedError, AttributeError):  # it has none
            return {}
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).iterdir())
        }


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
