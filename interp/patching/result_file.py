"""A safetensors file that holds tensors and, as JSON in its metadata, what describes them.

It is written beside its target and moved into place, so that no reader ever sees half a file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import UserError
from interp.untrusted import parse_json, read_tensor_file


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | None], kept: Mapping[str, Any]
) -> Path:
    """Write the tensors that are there, and ``kept`` as JSON. Raises UserError if it cannot."""
    there = {
        key: one.detach().cpu().contiguous().clone()
        for key, one in tensors.items()
        if one is not None
    }
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.unlink(missing_ok=True)  # a link to elsewhere would be written through
        texts = {key: json.dumps(value) for key, value in kept.items()}
        save_file(there, str(temporary), metadata=texts)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error})") from error
    return path


def read_tensors(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what was kept under these names.

    Raises:
        FileNotFoundError: no file.
        UserError: a name that is not there, or a damaged file; the message does not name the file.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    tensors, texts = read_tensor_file(path)
    missing = [name for name in names if name not in texts]
    if missing:
        raise UserError(f"it has no {missing[0]}")
    return tensors, {name: parse_json(texts[name]) for name in names}
