"""Files that another library wrote get their name when they are on the disk, or not at all."""

import os
from pathlib import Path

import pytest

from interp.files import LEFTOVER, beside_of, move_into_place, remove_leftovers


def test_everything_is_flushed_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, target = beside_of(tmp_path / "adapter"), tmp_path / "adapter"
    assert LEFTOVER.fullmatch(beside.name)
    beside.mkdir()
    for name in ("b.bin", "a.json"):
        (beside / name).write_text(name)
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
    assert done == ["a.json", "b.bin", beside.name, "moved", tmp_path.name]
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
