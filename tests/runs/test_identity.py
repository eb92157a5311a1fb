"""One run a directory: the same one goes on, anything else is refused and left as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from interp.files.documents import read_json
from interp.runs.identity import begin_run, check_run, claim_run

IDENTITY: dict[str, Any] = {"seed": 1, "data": ["a", "b"], "limit": None}


def test_a_new_and_an_empty_directory_are_claimed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for run in (tmp_path / "a" / "new", tmp_path / "empty"):
        check_run(run, "search.json", IDENTITY)
        claim_run(run, "search.json", IDENTITY)
        check_run(run, "search.json", IDENTITY)
        assert read_json(run / "search.json") == IDENTITY


def test_checking_makes_nothing(tmp_path: Path) -> None:
    check_run(tmp_path / "new", "search.json", IDENTITY)
    assert not (tmp_path / "new").exists()


def test_the_same_run_keeps_its_file(tmp_path: Path) -> None:
    claim_run(tmp_path, "search.json", IDENTITY)
    before = (tmp_path / "search.json").stat().st_mtime_ns
    claim_run(tmp_path, "search.json", {"seed": 1})  # what is left out is not compared
    assert (tmp_path / "search.json").stat().st_mtime_ns == before
    assert read_json(tmp_path / "search.json") == IDENTITY


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2}, r"\(seed was 1, now 2\)"),
        ({"limit": 3}, r"\(limit was None, now 3\)"),
        ({"data": ["b", "a"], "seed": 0}, r"\(data was \['a', 'b'\], now \['b', 'a'\]\)"),
        ({"new": "x"}, r"\(new was None, now 'x'\)"),
    ],
)
def test_another_run_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    claim_run(tmp_path, "search.json", IDENTITY)
    with pytest.raises(UserError, match=f"holds another run {said}: choose another --out"):
        claim_run(tmp_path, "search.json", IDENTITY | change)
    assert read_json(tmp_path / "search.json") == IDENTITY


def test_something_else_is_left_alone(tmp_path: Path) -> None:
    claim_run(tmp_path / "other", "patch.json", IDENTITY)
    (tmp_path / "thesis.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for run in (tmp_path, tmp_path / "other", tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="holds something else"):
            claim_run(run, "search.json", IDENTITY)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made") as caught:
        claim_run(tmp_path / "file" / "run", "search.json", IDENTITY)
    assert "\n" not in str(caught.value)


def test_what_was_made_after_the_check_does_not_matter(tmp_path: Path) -> None:
    """A trainer makes its folder of checkpoints before the run begins."""
    run = tmp_path / "run"
    check_run(run, "training.json", IDENTITY)
    (run / "checkpoints").mkdir(parents=True)
    begin_run(run, "training.json", IDENTITY)
    assert json.loads((run / "training.json").read_text()) == IDENTITY
    check_run(run, "training.json", IDENTITY)
