"""A look at a GGUF file's header before the library reads it.

The ``gguf`` package trusts the counts in a header: it reads an array that claims 2⁶⁰ values past
the end of the file, one Python object per value, until memory runs out. This reads the same header,
compares every count with the bytes that are left, and needs no memory beyond one name.

The format is that of github.com/ggml-org/ggml, ``docs/gguf.md``: magic, version, two counts, keys
with typed values, then each tensor's name, dimensions, type and offset, and the data, aligned.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from interp.errors import UserError

_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each type of value that has one size."""
_VERSIONS = (2, 3)
LARGEST_NAME = 2**16
LARGEST_ARRAY = 2**24
"""Values in all arrays together: a Python object each, once the library reads them."""
LARGEST_COUNT = 2**17
"""Keys, or tensors; the largest models have some thousands."""
LARGEST_DIMENSIONS = 4


def check_gguf(path: Path) -> None:
    """Raise UserError unless a file is GGUF whose header stays within the file and within reason.

    Checked are both counts, every text's and array's length, each tensor's dimensions, type and
    place, against the file's size. What the values mean is left to the library.
    """
    tensor_counts(path)


def tensor_counts(path: Path) -> list[tuple[str, int]]:
    """Every tensor's name and how many numbers it has, in the order of a checked header.

    Raises UserError as `check_gguf` does.
    """
    try:
        with path.open("rb") as file:
            header = _Header(file, path.stat().st_size)
            header.check()
            return header.tensors
    except OSError as error:
        raise UserError(f"cannot read the GGUF file {path.name} ({error.strerror})") from error
    except _Damaged as error:
        raise UserError(
            f"cannot read the GGUF file {path.name}: its header claims {error}; it is damaged or "
            "made to harm"
        ) from error


class _Damaged(Exception):
    """An impossible claim of the header."""


class _Header:
    """The header as it is read: a file, its size, and how many array values were passed."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.values = file, size, 0
        self.tensors: list[tuple[str, int]] = []

    def check(self) -> None:
        if self._take(4) != b"GGUF":
            raise _Damaged("to be of another format")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise _Damaged(f"version {version}, and {_VERSIONS} are read")
        tensors = self._count("tensors", LARGEST_COUNT)
        keys = self._count("keys", LARGEST_COUNT)
        alignment = 32
        for _ in range(keys):
            name = self._name()
            kind = self._number("<I")
            if name == b"general.alignment" and kind == 4:
                alignment = self._number("<I")
                if not 0 < alignment <= 2**16 or alignment & (alignment - 1):
                    raise _Damaged(f"an alignment of {alignment}")
                continue
            self._pass_value(kind, depth=0)
        ends = [self._tensor() for _ in range(tensors)]
        begin = -(-self.file.tell() // alignment) * alignment
        if ends and begin + max(ends) > self.size:
            raise _Damaged(f"tensors up to byte {begin + max(ends)} of {self.size}")

    def _tensor(self) -> int:
        """One tensor's description; returns where its data end, from the data's beginning."""
        name = self._name()
        n_dims = self._number("<I")
        if not 1 <= n_dims <= LARGEST_DIMENSIONS:
            raise _Damaged(f"a tensor of {n_dims} dimensions")
        values = 1
        for _ in range(n_dims):
            values *= self._number("<Q")
        kind = self._number("<I")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _Damaged(f"a tensor of the unknown type {kind}") from None
        if values > self.size * block:
            raise _Damaged(f"a tensor of {values} values")
        self.tensors.append((name.decode("utf-8", "replace"), values))
        return self._number("<Q") + -(-values // block) * block_bytes

    def _pass_value(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _STRING:
            self._skip(self._number("<Q"))
        elif kind == _ARRAY and depth < 2:
            inner, count = self._number("<I"), self._number("<Q")
            self.values += count
            if self.values > LARGEST_ARRAY:
                raise _Damaged(f"arrays of {self.values} values")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                return
            for _ in range(count):
                self._pass_value(inner, depth + 1)
        else:
            raise _Damaged(f"a value of the unknown type {kind}")

    def _name(self) -> bytes:
        length = self._number("<Q")
        if length > LARGEST_NAME:
            raise _Damaged(f"a name of {length} bytes")
        return self._take(length)

    def _count(self, what: str, largest: int) -> int:
        count = self._number("<Q")
        if count > largest:
            raise _Damaged(f"{count} {what}")
        return count

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return value

    def _take(self, length: int) -> bytes:
        found = self.file.read(length)
        if len(found) < length:
            raise _Damaged(f"more than the {self.size} bytes there are")
        return found

    def _skip(self, length: int) -> None:
        if self.file.tell() + length > self.size:
            raise _Damaged(f"a value of {length} bytes at byte {self.file.tell()} of {self.size}")
        self.file.seek(length, 1)
