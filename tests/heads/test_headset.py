"""Head sets as values and as small files."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from interp.heads import HeadSet, Origin, as_head_set, found_on, load_effects
from interp.heads.headset import check_site
from interp.interventions import Intervention
from interp.models import HookedModel
from tests.fixtures import PLANTED_HEADS

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
        '{"heads": [[1, 2]], "site": "output", "origin": {"model": 3}}',
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


ORIGIN = Origin(
    "a-model",
    "f" * 64,
    3,
    4,
    {"searched": ["capitals"], "seed": 0},
    ({"layer": 1, "head": 2, "effect": 1e-7, "q_value": None},),
    {"over": "resamples", "jaccard": [0.5, 0.25, 1.0], "chance": 0.1},
    {"torch": "2.6"},
)


@pytest.mark.parametrize("name", ["heads.json", "heads.yaml"])
def test_where_heads_come_from_is_saved_with_them(tmp_path: Path, name: str) -> None:
    """As a head set, and as an intervention; files without it stay as they were."""
    heads = HeadSet(((1, 2),), "attention", "by hand", ORIGIN)
    if name.endswith("yaml"):
        path = Intervention.of(heads).save(tmp_path / name)
        assert Intervention.load(path).heads[0].heads.origin == ORIGIN
    else:
        assert HeadSet.load(heads.save(tmp_path / name)).origin == ORIGIN
    path = HeadSet(((1, 2),)).save(tmp_path / "old.json")
    assert path.read_text() == '{"site": "output", "heads": [[1, 2]], "chosen_by": "by hand"}\n'
    assert HeadSet.load(path).origin is None


def test_heads_of_another_model_only_by_name(
    tmp_path: Path, tiny_llama: HookedModel, tiny_gpt2: HookedModel
) -> None:
    """Three layers of four heads: another model of that size may be a relative, no other."""
    heads = HeadSet(((1, 2),), "output", "by hand", ORIGIN)
    path, whole = heads.save(tmp_path / "h.json"), Intervention.of(heads).save(tmp_path / "i.yaml")
    readers: tuple[Any, ...] = (partial(HeadSet.load, path), partial(Intervention.load, whole))
    for read in readers:
        with pytest.raises(UserError, match=r"found on the model 'a-model'.*not on 'tiny-llama'"):
            read(model=tiny_llama)
        read(model=tiny_llama, transfer=True)
        with pytest.raises(UserError, match="3 layers of 4 heads do not fit one with 2 layers"):
            read(model=tiny_gpt2, transfer=True)
    own_heads = found_on(HeadSet(((1, 2),)), tiny_llama)
    HeadSet.load(own_heads.save(tmp_path / "own.json"), model=tiny_llama)
    with pytest.raises(UserError, match="heads of two models"):
        _ = Intervention.of(heads) | Intervention.of(replace(own_heads, heads=((0, 1),)))


def test_scores_and_stability_of_the_search(planted: HookedModel, planted_run: Path) -> None:
    effects = load_effects(planted_run / "effects.safetensors")["output"]
    heads = found_on(effects.select(count=1), planted, effects)
    assert heads.origin is not None
    (score,) = heads.origin.scores
    assert (score["layer"], score["head"]) == PLANTED_HEADS["output"]
    assert score["effect"] == pytest.approx(float(effects.statistics.mean.max()))
    assert heads.origin.stability["jaccard"][0] == 1.0  # one head alone matters
    assert heads.origin.stability["chance"] == pytest.approx(1 / 12)
    with pytest.raises(UserError, match="no effect of head"):
        found_on(HeadSet(((9, 9),)), planted, effects)


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
