"""Tensors from strangers: safetensors files, which hold numbers and text and nothing that runs.

The library checks the header before it takes memory: its length against the file's, every tensor's
bytes against its shape, and that the tensors fill the file without a gap. Its errors become one
line here. A tensor is never larger than its file.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from interp.errors import UserError
from interp.files.text import one_line
from interp.moved import old_names


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a file, and its metadata.

    Raises:
        UserError: no such file, or a damaged one; the message names neither file nor remedy.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in list(file.keys())}, metadata
    except _FOREIGN as error:
        raise UserError(one_line(error)) from error


def parse_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file's content. Raises UserError as `read_safetensors` does."""
    try:
        return load(content)
    except _FOREIGN as error:
        raise UserError(one_line(error)) from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, from the header. Raises UserError as `read_safetensors` does."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    except _FOREIGN as error:
        raise UserError(one_line(error)) from error


def check_tensors(tensors: Mapping[str, Tensor], **axes: int | None) -> None:
    """Raise UserError unless there are floating-point tensors of these names and numbers of axes.

    None means any number of axes from one on. No axis may be empty.
    """
    for name, wanted in axes.items():
        if name not in tensors:
            raise UserError(f"it has no tensor {name!r}")
        tensor = tensors[name]
        if not tensor.is_floating_point() or tensor.ndim < 1 or wanted not in (None, tensor.ndim):
            raise UserError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if not tensor.numel():
            raise UserError(f"{name} is empty")


# A dtype that this torch does not have is an AttributeError or a TypeError.
_FOREIGN = (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError)

__getattr__ = old_names(__name__)
