"""Effects as a value, a table and a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from interp.errors import UserError
from interp.files.tensor_file import write_tensor_file
from interp.heads import (
    HeadEffects,
    HeadSet,
    Site,
    agreement,
    effects_by_layer,
    load_effects,
    save_effects,
)

COLUMNS = [
    *("site", "layer", "head", "effect", "ci_low", "ci_high", "p_value", "q_value"),
    *("rank", "selected"),
]


@pytest.fixture
def effects() -> HeadEffects:
    generator = torch.Generator().manual_seed(0)
    return HeadEffects(
        values=torch.randn(14, 3, 4, generator=generator),
        probability=torch.rand(14, 3, 4, generator=generator),
        subjects=tuple(f"São {i // 2}" for i in range(14)),
        templates=("why", "famous") * 7,
        site="output",
        method="path",
        source="masked",
        seed=5,
    )


def same(one: HeadEffects, other: HeadEffects) -> bool:
    texts = ("subjects", "templates", "site", "method", "source", "seed")
    return (
        torch.equal(one.values, other.values)
        and torch.equal(one.probability, other.probability)
        and all(getattr(one, name) == getattr(other, name) for name in texts)
    )


def test_effects_of_one_site_come_back(tmp_path: Path, effects: HeadEffects) -> None:
    path = effects.save(tmp_path / "effects.safetensors")
    assert same(HeadEffects.load(path), effects)
    assert [file.name for file in tmp_path.iterdir()] == ["effects.safetensors"]


def test_effects_of_both_sites_come_back(tmp_path: Path, effects: HeadEffects) -> None:
    other = replace(
        effects, values=effects.values * 2, site="attention", method="attribution", source="cut"
    )
    path = save_effects(tmp_path / "effects.safetensors", [effects, other])
    loaded = load_effects(path)
    assert set(loaded) == {"output", "attention"}
    assert same(loaded["output"], effects)
    assert same(HeadEffects.load(path, "attention"), other)


def test_a_site_that_is_not_in_the_file_is_told(tmp_path: Path, effects: HeadEffects) -> None:
    path = effects.save(tmp_path / "effects.safetensors")
    with pytest.raises(UserError, match="holds no effects of site 'attention': output"):
        HeadEffects.load(path, "attention")


@pytest.mark.parametrize("keep", [0, 4, 60, 500])
def test_a_cut_off_file_is_told(tmp_path: Path, effects: HeadEffects, keep: int) -> None:
    path = effects.save(tmp_path / "effects.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="is damaged") as caught:
        load_effects(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    path = tmp_path / "effects.safetensors"
    with pytest.raises(UserError, match=r"there are no effects at .* run `interp locate`"):
        load_effects(path)
    path.write_bytes(b"site,layer,head\n" * 40)
    with pytest.raises(UserError, match="is damaged"):
        load_effects(path)
    save_file({"output.values": torch.zeros(2, 1, 1)}, str(path), metadata={"format": "pt"})
    with pytest.raises(UserError, match="is damaged"):
        load_effects(path)
    metadata = {
        "subjects": "a\nb\nc",
        "templates": "x\nx\nx",
        "output.method": "path",
        "output.source": "masked",
        "output.seed": "0",
    }
    tensors = {"output.values": torch.zeros(2, 1, 1), "output.probability": torch.zeros(2, 1, 1)}
    save_file(tensors, str(path), metadata=metadata)
    with pytest.raises(UserError, match="it has no checksum"):
        load_effects(path)
    write_tensor_file(path, tensors, metadata)
    with pytest.raises(UserError, match="differ in length"):
        load_effects(path)


def test_the_table_has_the_columns_of_heads_csv(effects: HeadEffects) -> None:
    chosen = effects.select(count=2)
    table = effects.to_dataframe(chosen)
    assert list(table.columns) == COLUMNS
    assert table["rank"].tolist() == list(range(1, 13))
    assert list(zip(table["layer"], table["head"], strict=True)) == list(effects.ranked())
    assert table["effect"].is_monotonic_decreasing
    assert table["selected"].tolist() == [True, True] + [False] * 10
    for row in table.to_dict("records"):
        assert row["effect"] == effects.statistics.mean[row["layer"], row["head"]]
        assert row["ci_low"] < row["effect"] < row["ci_high"]
        assert row["q_value"] >= row["p_value"]


def test_heads_of_another_site_are_not_marked(effects: HeadEffects) -> None:
    assert not effects.to_dataframe(HeadSet(((0, 0),), "attention"))["selected"].any()
    assert effects.to_dataframe(HeadSet(((0, 0),), "output"))["selected"].sum() == 1


def test_taking_prompts(effects: HeadEffects) -> None:
    some = effects.take([3, 0])
    assert torch.equal(some.values, effects.values[[3, 0]])
    assert torch.equal(some.probability, effects.probability[[3, 0]])
    assert some.subjects == ("São 1", "São 0")
    assert some.templates == ("famous", "why")


def test_every_subject_counts_once(effects: HeadEffects) -> None:
    """Two prompts about one subject of seven: 6 and 0, and 1 about each other."""
    values = torch.tensor([6.0, 0, 1, 1, 1, 1, 1, 1])[:, None, None].expand(8, 2, 3)
    subjects, templates = ("a", "a", *"bcdefg"), ("why",) * 8
    uneven = replace(
        effects, values=values, probability=values, subjects=subjects, templates=templates
    )
    assert uneven.mean.tolist() == [[pytest.approx(9 / 7)] * 3] * 2
    assert uneven.to_dataframe()["effect"].tolist() == [pytest.approx(9 / 7)] * 6
    layers = effects_by_layer(uneven)
    assert layers["effect"].tolist() == [pytest.approx(27 / 7)] * 2
    assert layers["ci_low"].tolist() == [pytest.approx(3)] * 2


def test_ranking_needs_no_tests(effects: HeadEffects) -> None:
    few = effects.take(range(4))
    by_subject = few.values.reshape(2, 2, 3, 4).mean(dim=1).mean(dim=0)
    torch.testing.assert_close(few.mean, by_subject)
    best = int(by_subject.argmax())
    assert few.ranked()[0] == few.select(count=1).heads[0] == (best // 4, best % 4)
    table = few.to_dataframe()
    assert table["effect"].is_monotonic_decreasing
    assert table[["ci_low", "ci_high", "p_value", "q_value"]].isna().to_numpy().all()
    assert "6 subjects are needed" in str(few)
    assert few.plot().data
    with pytest.raises(UserError, match="2 subjects are too few"):
        few.select(fdr=0.05)


def test_as_patching_says_what_was_edited(effects: HeadEffects) -> None:
    of_site: dict[Site, str] = {"output": "z", "attention": "pattern"}
    for site, component in of_site.items():
        for found in replace(effects, site=site).as_patching():
            assert (found.component, found.source) == (component, "masked")


def test_agreement_by_hand(effects: HeadEffects) -> None:
    def of(means: Any) -> HeadEffects:
        values = torch.tensor(means)[None, None].expand(14, 1, len(means))
        return replace(effects, values=values, probability=values)

    found = agreement(of([1.0, 2.0, 3.0, 4.0]), of([1.0, 3.0, 2.0, 4.0]), top_k=2)
    # Spearman: 1 − 6 · (1 + 1) / (4 · 15) = 0.8; top two {4, 3} and {4, 2} share one.
    assert found["spearman"] == pytest.approx(0.8)
    assert found["top_k_overlap"] == 0.5
    assert found["n"] == 4
    assert found["pearson"] == pytest.approx(0.8)  # the same values, in another order
    assert found["top_k"] == 2
    with pytest.raises(UserError, match="different sizes"):
        agreement(of([1.0, 2.0]), of([1.0, 2.0, 3.0]))


def test_agreement_is_about_the_heads_whose_edit_helps(effects: HeadEffects) -> None:
    """Head 3 has by far the largest effect, but a negative one: it is in nobody's top two."""
    values = torch.tensor([[3.0, 1.0, 2.0, -9.0]]).expand(14, 1, 4)
    a = replace(effects, values=values, probability=values)
    b = replace(a, values=values * torch.tensor([1.0, 1.0, 1.0, -0.01]))
    assert agreement(a, b, top_k=2)["top_k_overlap"] == 1.0
    assert agreement(a, replace(a, values=-values), top_k=1)["top_k_overlap"] == 0.0


def test_parts_that_do_not_fit_are_told(effects: HeadEffects) -> None:
    with pytest.raises(UserError, match="differ in length"):
        replace(effects, subjects=effects.subjects[:-1])
    with pytest.raises(UserError, match="differ in length"):
        replace(effects, templates=effects.templates[:-1])


def test_a_large_seed_comes_back(tmp_path: Path, effects: HeadEffects) -> None:
    long = replace(effects, seed=1_796_073_209)
    assert HeadEffects.load(long.save(tmp_path / "effects.safetensors")).seed == 1_796_073_209


def test_effects_that_one_file_cannot_hold_are_refused(
    tmp_path: Path, effects: HeadEffects
) -> None:
    path = tmp_path / "effects.safetensors"
    attention = replace(effects, site="attention", method="attribution", source="cut")
    moved = replace(attention, subjects=attention.subjects[::-1])
    broken = replace(effects, subjects=("a\nb", *effects.subjects[1:]))
    for given, message in (
        ([effects, effects], "two of the effects are of one site"),
        ([effects, moved], "are of different prompts"),
        ([broken], "has a line break"),
    ):
        with pytest.raises(UserError, match=message):
            save_effects(path, given)
    assert not path.exists()
