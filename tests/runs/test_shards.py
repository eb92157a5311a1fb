"""Shards: whole, checked, of one sweep only; and what is put together from them."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.forward.batch import in_batches
from interp.jobs import Shard
from interp.runs.shards import (
    InProcess,
    ShardStore,
    digest_of,
    finish_shards,
    put_together,
    remove_shards,
)

IDENTITY = {"model": "ab", "seed": 1}


def square(model: int, job: list[int]) -> Shard:
    """The work of these tests: squares, times the model."""
    values = model * torch.tensor(job, dtype=torch.float32) ** 2
    return Shard({"values": values}, texts=[f"{one}" for one in job], kept={"n": len(job)})


class Counted:
    """The engine in this process, in reverse, which notes what it was asked for."""

    def __init__(self, model: int) -> None:
        self.inner, self.asked = InProcess(model), []  # type: ignore[var-annotated]

    def run(self, work: Any, jobs: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Shard]]:
        some = list(jobs)
        self.asked += [number for number, _ in some]
        return self.inner.run(work, reversed(some))


def make(store: ShardStore, parts: list[list[int]]) -> tuple[list[Shard], list[int]]:
    engine = Counted(3)
    finish_shards(store, engine, square, job=lambda number: parts[number], progress=False)
    return [store.finished(number) for number in range(store.n_shards)], engine.asked


def test_prompts_are_cut_in_order() -> None:
    assert in_batches([4, 1, 3, 0, 2], 2) == [[4, 1], [3, 0], [2]]
    assert in_batches([], 2) == []


def test_shards_are_put_where_their_prompts_stand(tmp_path: Path) -> None:
    parts = in_batches([4, 1, 3, 0, 2], 2)
    store = ShardStore(tmp_path / "a" / "b", IDENTITY, len(parts))
    shards, asked = make(store, parts)
    assert asked == [0, 1, 2]
    whole = put_together(shards, parts)
    assert whole.kept == {}  # the last shard says another number
    assert put_together(shards[:2], [[0, 1], [2, 3]]).kept == {"n": 2}
    assert whole.tensors["values"].tolist() == [0, 3, 12, 27, 48]
    assert whole.texts == ["0", "1", "2", "3", "4"]
    assert [shard.kept["n"] for shard in shards] == [2, 2, 1]
    again, asked = make(store, parts)
    assert asked == []
    assert torch.equal(put_together(again, parts).tensors["values"], whole.tensors["values"])
    remove_shards(store.folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["cut", "altered", "empty", "foreign", "other number", "text"])
def test_a_shard_that_cannot_be_relied_on_is_made_again(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = in_batches(range(6), 2)
    store = ShardStore(tmp_path / "shards", IDENTITY, 3)
    make(store, parts)
    path, content = store.path(1), store.path(1).read_bytes()
    good = content
    if harm == "foreign":
        other = ShardStore(tmp_path / "other", IDENTITY | {"seed": 2}, 3)
        make(other, parts)
        content = other.path(1).read_bytes()
    elif harm == "other number":
        content = store.path(2).read_bytes()
    else:
        middle = len(content) - 3
        content = {
            "cut": content[:middle],
            "altered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
            "text": b"site,layer,head\n" * 40,
        }[harm]
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        shards, asked = make(store, parts)
    assert asked == [1]
    assert "is not used" in caplog.text
    assert str(path) in caplog.text
    assert put_together(shards, parts).tensors["values"].tolist() == [0, 3, 12, 27, 48, 75]
    assert path.read_bytes() == good


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, IDENTITY, 1)
    (tmp_path / f".{store.path(0).name}.77.part").write_bytes(b"half")
    make(store, [[1]])
    assert [path.name for path in tmp_path.iterdir()] == [store.path(0).name]


def test_nothing_finished_is_lost_where_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = in_batches(range(6), 2)
    store = ShardStore(tmp_path, IDENTITY, 3)
    real = ShardStore.write

    def full(self: ShardStore, number: int, shard: Shard) -> None:
        if number == 0:
            raise UserError("No space left on device")
        real(self, number, shard)

    monkeypatch.setattr(ShardStore, "write", full)
    with pytest.raises(UserError, match="No space left"):
        make(store, parts)
    monkeypatch.undo()
    assert make(store, parts)[1] == [0]


def test_texts_are_kept_to_the_last_half_of_a_pair(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, IDENTITY, 1)
    said = ["ä", "=b()\n", "\ud800", ""]
    store.write(0, Shard(texts=said))
    assert store.finished(0).texts == said
    assert put_together([store.finished(0)], [[3, 1, 0, 2]]).texts == ["\ud800", "=b()\n", "", "ä"]


def test_a_shard_has_a_text_for_every_prompt_or_none() -> None:
    with pytest.raises(UserError, match="do not fit together"):
        put_together([Shard(texts=["one"])], [[0, 1]])
    assert put_together([Shard()], [[0, 1]]) == Shard({}, texts=[])
    assert put_together([], []) == Shard({}, texts=[])


@pytest.mark.parametrize(
    "other",
    [
        Shard({"values": torch.ones(3)}),
        Shard({"values": torch.ones(2, 1)}),
        Shard({"values": torch.ones(2).double()}),
        Shard({"values": torch.tensor(1.0)}),
        Shard({"value": torch.ones(2)}),
        Shard({"values": torch.ones(2), "more": torch.ones(2)}),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(other: Shard) -> None:
    """They carry the right checksums, which a forger can compute."""
    with pytest.raises(UserError, match="do not fit together: remove the directory 'shards'"):
        put_together([Shard({"values": torch.ones(2)}), other], [[0, 1], [2, 3]])


def test_digests_depend_on_content_alone() -> None:
    assert digest_of({"a": 1, "b": [2, None]}) == digest_of({"b": (2, None), "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    assert ShardStore(Path(), IDENTITY, 2).digest != ShardStore(Path(), IDENTITY, 3).digest
