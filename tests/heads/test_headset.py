"""Head sets as values and as small files."""

from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from interp.heads import HeadSet, as_head_set
from interp.heads.headset import check_site

HEADS = ((9, 1), (17, 8), (22, 1))


def test_a_set_iterates_as_tuples() -> None:
    chosen = HeadSet(HEADS)
    assert list(chosen) == [(9, 1), (17, 8), (22, 1)]
    assert len(chosen) == 3
    assert (17, 8) in chosen
    assert (8, 17) not in chosen


def test_sets_are_equal_by_heads_and_site() -> None:
    assert HeadSet(HEADS, "output", "one way") == HeadSet(HEADS, "output", "another")
    assert hash(HeadSet(HEADS, "output", "one way")) == hash(HeadSet(HEADS, "output", "another"))
    assert HeadSet(HEADS, "output") != HeadSet(HEADS, "attention")
    assert HeadSet(HEADS[:2]) != HeadSet(HEADS)


@pytest.mark.parametrize("heads", [HEADS, ()])
def test_a_saved_set_comes_back(tmp_path: Path, heads: Any) -> None:
    chosen = HeadSet(heads, "attention", "3 largest, café")
    path = chosen.save(tmp_path / "heads.json")
    loaded = HeadSet.load(path)
    assert loaded == chosen
    assert loaded.chosen_by == chosen.chosen_by
    assert all(isinstance(head, tuple) for head in loaded)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        '{"site": "output"}',
        '{"heads": [[1, 2]]}',
        '{"heads": [[1, 2, 3]], "site": "output"}',
        '{"heads": [["one", 2]], "site": "output"}',
        '{"heads": 7, "site": "output"}',
        '{"heads": [[1, 2]], "site": "nose"}',
        '{"heads": [[1, 2], [1, 2]], "site": "output"}',
        '{"heads": [[-1, 2]], "site": "output"}',
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        HeadSet.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a head set"):
        HeadSet.load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"is not a head set"):
        HeadSet.load(tmp_path / "binary")


@pytest.mark.parametrize(
    ("heads", "message"), [(((1, 2), (1, 2)), "named twice"), (((0, -1),), "counted from zero")]
)
def test_sets_that_make_no_sense(heads: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        HeadSet(heads)


def test_an_unknown_site_lists_the_known() -> None:
    with pytest.raises(UserError, match="unknown site 'nose'; known: output, attention"):
        check_site("nose")


def test_a_plain_list_becomes_a_set() -> None:
    assert as_head_set([(1, 2)]) == HeadSet(((1, 2),), "output")
    assert as_head_set([(1, 2)], "attention") == HeadSet(((1, 2),), "attention")
    chosen = HeadSet(HEADS, "attention", "some way")
    assert as_head_set(chosen) is chosen
    assert as_head_set(chosen, "attention") is chosen
    with pytest.raises(UserError, match="chosen for site 'attention', not 'output'"):
        as_head_set(chosen, "output")
