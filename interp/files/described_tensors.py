"""A safetensors file that holds tensors and, as JSON in its metadata, what describes them.

It is written whole or not at all, with a checksum (``interp.files.tensor_file``).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.errors import UserError
from interp.files import parse_json
from interp.files.tensor_file import read_tensor_file, write_tensor_file


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | None], kept: Mapping[str, Any]
) -> Path:
    """Write the tensors that are there, and ``kept`` as JSON. Raises UserError if it cannot."""
    there = {key: one for key, one in tensors.items() if one is not None}
    return write_tensor_file(path, there, {key: json.dumps(value) for key, value in kept.items()})


def read_tensors(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what was kept under these names.

    Raises:
        FileNotFoundError: no file.
        UserError: a name that is not there, or a damaged file; the message does not name the file.
    """
    tensors, texts = read_tensor_file(path)
    missing = [name for name in names if name not in texts]
    if missing:
        raise UserError(f"it has no {missing[0]}")
    return tensors, {name: parse_json(texts[name]) for name in names}
