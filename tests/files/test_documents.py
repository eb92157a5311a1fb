"""Files that are whole or not there, and tensor files with a checksum and fixed bytes."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp.files.whole
from interp.errors import UserError
from interp.files.tensor_file import (
    parse_tensor_bytes,
    read_tensor_file,
    tensor_bytes,
    write_tensor_file,
)
from interp.files.whole import LEFTOVER, beside_of, move_into_place, remove_leftovers, write_whole

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True, False])}
TEXTS = {"z": "1", "y": 'é "quoted"\n', "x": ""}


def failing(error: int) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return function


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_write_that_fails_anywhere_leaves_the_old_file(
    call: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_whole(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(interp.files.whole.os, call, failing(error))
        with pytest.raises(UserError, match=os.strerror(error)) as caught:
            write_whole(target, b"new")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"


def test_a_file_larger_than_there_is_room_for_is_told(tmp_path: Path) -> None:
    """A real limit of the system; in a process of its own, as it cannot be taken back."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from interp.errors import UserError; from interp.files.whole import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_whole(Path(sys.argv[1]) / 'small', bytes(4096))\n"
        "try: write_whole(Path(sys.argv[1]) / 'large', bytes(4097))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "large: cannot be written (File too large)" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_only_left_over_files_are_removed(tmp_path: Path) -> None:
    for name in (".heads.csv.123.part", ".hidden", "x.part", ".heads.csv.part", "heads.csv"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".hidden", "x.part", ".heads.csv.part", "heads.csv"}


def test_tensors_and_texts_come_back(tmp_path: Path) -> None:
    path = write_tensor_file(tmp_path / "x.safetensors", TENSORS, TEXTS)
    tensors, texts = read_tensor_file(path)
    assert texts == TEXTS
    assert all(torch.equal(tensors[name], one) for name, one in TENSORS.items())
    again = load_file(path)  # the library reads it too
    assert all(torch.equal(again[name], one) for name, one in TENSORS.items())
    assert parse_tensor_bytes(tensor_bytes({}, {"only": "text"})) == ({}, {"only": "text"})


def test_the_bytes_do_not_depend_on_any_order() -> None:
    turned = tensor_bytes(
        dict(reversed(list(TENSORS.items()))), dict(reversed(list(TEXTS.items())))
    )
    assert turned == tensor_bytes(TENSORS, TEXTS)
    code = (
        "import hashlib, torch; from interp.files.tensor_file import tensor_bytes\n"
        "content = tensor_bytes({'a': torch.ones(2)}, {c: c for c in 'zyxwvut'})\n"
        "print(hashlib.sha256(content).hexdigest())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = tensor_bytes({"a": torch.ones(2)}, {c: c for c in "zyxwvut"})
    assert output.strip() == hashlib.sha256(here).hexdigest()


def test_every_altered_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    content = tensor_bytes(TENSORS, TEXTS)
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 0x10
        try:
            parse_tensor_bytes(bytes(altered))
        except UserError:
            continue
        pytest.fail(f"byte {place} was altered, and nothing said so")
    for end in range(len(content)):
        with pytest.raises(UserError, match=r"."):
            parse_tensor_bytes(content[:end])
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"x": "y"})
    with pytest.raises(UserError, match="no checksum"):
        read_tensor_file(path)
    with pytest.raises(FileNotFoundError):
        read_tensor_file(tmp_path / "none.safetensors")


def test_everything_is_flushed_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, target = beside_of(tmp_path / "adapter"), tmp_path / "adapter"
    assert LEFTOVER.fullmatch(beside.name)
    beside.mkdir()
    for name in ("b.bin", "a.json"):
        (beside / name).write_text(name)
    (beside / "inner").mkdir()
    (beside / "inner" / "inside").write_text("")
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def moved(source: Path, to: Path) -> None:
        done.append("moved")
        replace(source, to)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", moved)
    assert move_into_place(beside, target) == target
    assert done == ["inside", "inner", "b.bin", "a.json", beside.name, "moved", tmp_path.name]
    assert (target / "b.bin").read_text() == "b.bin"
    one = beside_of(tmp_path / "one.txt")
    one.write_text("1")
    done.clear()
    move_into_place(one, tmp_path / "one.txt")
    assert done == [one.name, "moved", tmp_path.name]


def test_what_cannot_be_moved_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        move_into_place(beside_of(tmp_path / "a"), tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    beside = beside_of(tmp_path / "full")
    beside.mkdir()
    with pytest.raises(OSError, match="not empty"):
        move_into_place(beside, tmp_path / "full")
    assert (tmp_path / "full" / "kept").read_text() == "kept"
    left = beside_of(tmp_path / "left.csv")
    left.write_text("half")
    remove_leftovers(tmp_path)
    assert not left.exists()
