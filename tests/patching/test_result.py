"""The result type: statistics, recovered fractions, tables, arithmetic and its file, by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from interp.errors import UserError
from interp.patching.effect_arrays import check_order
from interp.patching.result import PatchEffects
from tests.unchecked import unchecked

GROUPS = ("a", "a", "b", "c", "d", "e", "f")


def make(**changes: Any) -> PatchEffects:
    """Seven prompts, two layers of three heads; effects are small whole numbers."""
    generator = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {
        "values": torch.randint(-4, 5, (7, 2, 3), generator=generator).float(),
        "axes": ("prompt", "layer", "head"),
        "corrupted": torch.arange(7.0),
        "clean": torch.arange(7.0) + 2,
        "component": "z",
        "method": "exact",
        "metric": "logit difference",
        "groups": GROUPS,
        "templates": ("x", "y", "x", "y", "x", "y", "x"),
        "metadata": {"model": "tiny"},
    }
    return PatchEffects(**(settings | changes))


def tiny(**changes: Any) -> PatchEffects:
    """Two prompts, three layers: means 2, −3 and 0.5."""
    values = torch.tensor([[1.0, -4.0, 0.5], [3.0, -2.0, torch.nan]])
    settings: dict[str, Any] = {
        "values": values,
        "axes": ("prompt", "layer"),
        "corrupted": torch.tensor([0.0, 1.0]),
        "clean": torch.tensor([2.0, 7.0]),
        "component": "resid_pre",
        "method": "exact",
        "metric": "logit difference",
    }
    return PatchEffects(**(settings | changes))


def test_means_and_recovered_fractions_by_hand() -> None:
    result = tiny()
    assert result.mean.tolist() == [2.0, -3.0, 0.5]
    # Gaps 2 and 6: mean 4; the last layer was run on the first prompt only, whose gap is 2.
    assert result.recovered().tolist() == [0.5, -0.75, 0.25]


def test_recovered_is_a_fraction_of_means_not_a_mean_of_fractions() -> None:
    result = tiny(values=torch.ones(2, 1), clean=torch.tensor([0.001, 9.0]))
    assert result.recovered().item() == pytest.approx(1 / 4.0005)


def test_recovered_weighs_groups_as_the_mean_does() -> None:
    """Two prompts of a, one of b. Effects 1, 3 and 6, gaps 2, 4 and 9: 4 of 6 over groups.

    The second unit was not measured on a's first prompt: (3 + 6) / (4 + 9). The third never was.
    """
    values = torch.tensor([[1.0, torch.nan], [3.0, 3.0], [6.0, 6.0]])
    values = torch.cat([values, torch.full((3, 1), torch.nan)], dim=1)
    result = tiny(
        values=values,
        corrupted=torch.tensor([0.0, 1.0, 1.0]),
        clean=torch.tensor([2.0, 5.0, 10.0]),
        groups=("a", "a", "b"),
    )
    assert result.mean[0].item() == 4
    assert result.recovered()[:2].tolist() == pytest.approx([4 / 6, 9 / 13])
    assert result.recovered()[2].isnan()


def test_the_gap_that_is_asked_for_is_that_of_groups() -> None:
    """Gaps 1, 1 and −1: a third over prompts, none over the groups (a, a, b)."""
    result = tiny(
        values=torch.ones(3, 1),
        corrupted=torch.zeros(3),
        clean=torch.tensor([1.0, 1.0, -1.0]),
        groups=("a", "a", "b"),
    )
    with pytest.raises(UserError, match="no gap to recover"):
        result.recovered()


@pytest.mark.parametrize("clean", [None, torch.tensor([1.0, 0.0])])
def test_no_gap_to_recover_is_told(clean: torch.Tensor | None) -> None:
    with pytest.raises(UserError, match=r"no gap to recover|no clean run"):
        tiny(clean=clean).recovered()


def test_table_ranks_measured_units_by_size() -> None:
    values = tiny().values.clone()
    values[:, 2] = torch.nan
    table = tiny(values=values).to_dataframe()
    assert table["layer"].tolist() == [1, 0]
    assert table["effect"].tolist() == [-3, 2]
    assert table["rank"].tolist() == [1, 2]
    assert table["q_value"].isna().all()  # two groups are too few for a test


def test_table_holds_the_statistics_of_each_unit() -> None:
    result = make()
    table = result.to_dataframe()
    assert list(table.columns) == [
        "layer",
        "head",
        "effect",
        "ci_low",
        "ci_high",
        "p_value",
        "q_value",
        "rank",
    ]
    assert len(table) == 6
    for row in table.to_dict("records"):
        place = (row["layer"], row["head"])
        assert row["effect"] == pytest.approx(result.statistics.mean[place])
        assert row["p_value"] == result.statistics.p_value[place]
        assert row["ci_low"] <= row["effect"] <= row["ci_high"]


def test_the_effect_is_the_mean_over_groups() -> None:
    """The two prompts of group a count once together."""
    values = torch.tensor([4.0, 0, 1, 1, 1, 1, 1])[:, None, None].expand(7, 2, 3)
    result = make(values=values)
    assert result.to_dataframe()["effect"].tolist() == [pytest.approx(7 / 6)] * 6
    assert result.mean[0, 0].item() == pytest.approx(7 / 6)


def test_top_k_by_size_and_by_sign() -> None:
    result = tiny()
    assert result.top_k(2) == [(1,), (0,)]
    assert result.top_k(2, by="signed") == [(0,), (2,)]
    assert result.top_k(99) == [(1,), (0,), (2,)]
    with pytest.raises(UserError, match="unknown order 'best'; known: absolute, signed"):
        check_order("best")


def test_labels_are_coordinates() -> None:
    values = torch.tensor([[[1.0, -2.0]], [[1.0, -2.0]]])
    axes, labels = ("prompt", "layer", "span"), {"span": ("subject", "object")}
    result = tiny(values=values, axes=axes, labels=labels)
    assert result.top_k(1) == [(0, "object")]
    assert result.to_dataframe()["span"].tolist() == ["object", "subject"]


def test_agreement_by_hand() -> None:
    a = tiny(values=torch.tensor([[3.0, -4.0, 1.0, 0.0]] * 2))
    b = tiny(values=torch.tensor([[6.0, -8.0, 2.0, 0.0]] * 2))
    same = a.agreement(b, top_k=2)
    assert same["pearson"] == pytest.approx(1)
    assert same["spearman"] == pytest.approx(1)
    assert (same["top_k_overlap"], same["n"]) == (1, 4)
    # −a: the same sizes, all signs turned.
    turned = a.agreement(-a, top_k=2)
    assert turned["pearson"] == pytest.approx(-1)
    assert turned["top_k_overlap"] == 1
    # The ranks of 3, −4, 1, 0 and of 0, 1, 3, −4 are 4 1 3 2 and 2 3 4 1: Σd² = 4+4+1+1.
    c = tiny(values=torch.tensor([[0.0, 1.0, 3.0, -4.0]] * 2))
    assert a.agreement(c, top_k=1)["spearman"] == pytest.approx(1 - 6 * 10 / (4 * 15))
    assert a.agreement(c, top_k=1)["top_k_overlap"] == 0


def test_agreement_with_a_constant_is_not_a_number() -> None:
    flat = tiny(values=torch.zeros(2, 3))
    assert np.isnan(flat.agreement(tiny(values=torch.rand(2, 3)))["pearson"])


@given(factor=st.floats(-4, 4).filter(lambda x: abs(x) > 1e-2))
def test_arithmetic_is_linear_in_the_metric(factor: float) -> None:
    a, b = make(), make(values=torch.ones(7, 2, 3), method="attribution")
    torch.testing.assert_close((a + b).values, a.values + 1)
    torch.testing.assert_close((a * factor).values, a.values * factor)
    torch.testing.assert_close((factor * a / factor).values, a.values)
    torch.testing.assert_close((a * factor).recovered(), a.recovered())
    torch.testing.assert_close(((a + b) / 2).corrupted, a.corrupted)
    assert (a - b).method == "exact − attribution"
    assert (a - b).component == "z"
    assert (a - a).values.abs().max() == 0
    with pytest.raises(UserError, match="no gap"):
        (a - b).recovered()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (make(axes=("prompt", "layer", "kv_head")), "axes"),
        (make(values=torch.zeros(7, 2, 2)), "shape"),
        (make().take([0, 1]), "prompts: 7 and 2"),
        (make(groups=tuple("abcdefg")), "different prompts"),
    ],
)
def test_results_of_other_units_do_not_mix(other: PatchEffects, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _ = make() - other


def test_no_arithmetic_with_other_things() -> None:
    for other in ("2", None, True):
        with pytest.raises(TypeError):
            _ = make() * other
    with pytest.raises(TypeError):
        _ = make() + 1
    with pytest.raises(UserError, match="divided by zero"):
        _ = make() / 0


def test_take_keeps_everything_of_the_prompts() -> None:
    some = make().take([6, 0])
    assert some.groups == ("f", "a")
    assert some.templates == ("x", "x")
    assert some.corrupted.tolist() == [6, 0]
    assert some.clean is not None
    assert some.clean.tolist() == [8, 2]
    assert torch.equal(some.values, make().values[[6, 0]])
    for wrong, message in (([7], "has 7: there are 7"), ([], "no prompts are taken of 7")):
        with pytest.raises(UserError, match=message):
            make().take(wrong)
    mask = [number in (0, 6) for number in range(7)]
    kinds: tuple[Any, ...] = (list, torch.tensor, np.array)
    for kind in kinds:
        assert make().take(kind(mask)).groups == ("a", "f")
    with pytest.raises(UserError, match="mask of 2 entries for 7"):
        make().take([True, False])
    with pytest.raises(UserError, match="no prompts are taken"):
        make().take([False] * 7)


@pytest.mark.parametrize("form", ["{}", "pair {}"])
def test_prompts_without_a_group_stay_apart(form: str) -> None:
    """Those of two results that each numbered their own."""
    groups = [form.format(number) for number in range(7)]
    one = make(groups=tuple(groups))
    found = PatchEffects.concatenate([one, one]).groups
    assert found == tuple(form.format(number) for number in range(14))
    mixed = make(groups=("Rome", *groups[1:]))
    if form == "pair {}":
        found = PatchEffects.concatenate([one, mixed]).groups
        assert found[7:] == ("Rome", *(f"pair {number}" for number in range(8, 14)))
    assert PatchEffects.concatenate([one.take([3, 4]), one.take([0, 1])]).groups == tuple(
        form.format(number) for number in (3, 4, 0, 1)
    )


def test_parts_are_put_together_again() -> None:
    whole = make()
    again = PatchEffects.concatenate([whole.take([0, 1, 2]), whole.take([3, 4, 5, 6])])
    assert torch.equal(again.values, whole.values)
    assert again.clean is not None
    assert torch.equal(again.clean, whole.corrupted + 2)
    assert (again.groups, again.templates) == (whole.groups, whole.templates)
    with pytest.raises(UserError, match="differ in method: exact and ig"):
        PatchEffects.concatenate([whole, make(method="ig")])
    with pytest.raises(UserError, match="no results"):
        PatchEffects.concatenate([])


def test_each_prompt_is_its_own_group_by_default() -> None:
    result = tiny()
    assert result.groups == ("0", "1")
    assert result.templates == ("", "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": ("prompt", "layer", "column")}, "unknown axis 'column'; known: prompt, layer"),
        ({"axes": ("layer", "prompt", "head")}, "the prompt and then others"),
        ({"axes": ("prompt", "layer")}, "2 axes"),
        ({"groups": ("a",)}, "7 prompts but 1 groups"),
        ({"labels": {"span": ("x",)}}, "not an axis"),
        ({"labels": {"layer": ("x",)}}, "needs 2 different labels"),
        ({"labels": {"layer": ("x", "x")}}, "needs 2 different labels"),
    ],
)
def test_results_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**changes)


def test_file_gives_back_all_of_it(tmp_path: Path) -> None:
    values = torch.randn(7, 2, 2)
    values[3, 1, 1] = torch.nan
    result = make(
        values=values,
        axes=("prompt", "layer", "span"),
        labels={"span": ("Paris, the", "\n")},
        groups=("a\nb", *GROUPS[1:]),
        seed=5,
        resolution=1e-6,
    )
    back = PatchEffects.load(result.save(tmp_path / "effects.safetensors"))
    torch.testing.assert_close(back.values, result.values, equal_nan=True, rtol=0, atol=0)
    assert back.clean is not None
    assert torch.equal(back.clean, result.clean)  # type: ignore[arg-type]
    for name in ("axes", "component", "method", "metric", "source", "groups", "templates"):
        assert getattr(back, name) == getattr(result, name)
    assert dict(back.labels) == dict(result.labels)
    assert dict(back.metadata) == {"model": "tiny"}
    assert (back.seed, back.resolution) == (5, 1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["effects.safetensors"]
    no_clean = PatchEffects.load(make(clean=None).save(tmp_path / "other.safetensors"))
    assert no_clean.clean is None


def test_numbers_of_any_kind_are_saved(tmp_path: Path) -> None:
    given: Any = {"n": 3, 4: None}
    result = unchecked(make, metadata=given, seed=np.int64(3), resolution=np.float32(0.5))
    back = PatchEffects.load(result.save(tmp_path / "effects.safetensors"))
    assert dict(back.metadata) == {"n": "3", "4": "None"}
    assert (back.seed, back.resolution) == (3, 0.5)
    with pytest.raises(UserError, match="seed is a whole number"):
        unchecked(make, seed=2.5)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = make().save(tmp_path / "effects.safetensors")
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="is not a patching result, or is damaged"):
            PatchEffects.load(path)
    save_file({"values": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match="damaged"):
        PatchEffects.load(path)
    with pytest.raises(UserError, match="there is no patching result"):
        PatchEffects.load(tmp_path / "none.safetensors")


def test_noise_has_no_significant_unit_and_a_plant_has() -> None:
    values = torch.randn(12, 4, 5, generator=torch.Generator().manual_seed(3))
    values[:, 2, 3] -= 3
    table = make(
        values=values, corrupted=torch.zeros(12), clean=None, groups=(), templates=()
    ).to_dataframe()
    significant = table.loc[table["q_value"] < 0.05, ["layer", "head"]]
    assert significant.to_numpy().tolist() == [[2, 3]]


def test_a_notebook_shows_the_largest_effects() -> None:
    html = make()._repr_html_()
    assert "effect" in html
    assert html.count("<tr") == 7


def test_numbers_as_groups_and_labels_become_the_text_that_a_file_holds(tmp_path: Path) -> None:
    found = make()
    given = {"groups": [3, 3, 4, 5, 6, 7, 8], "labels": {"head": (0, 1, 2)}, "templates": [1] * 7}
    for name, value in given.items():
        object.__setattr__(found, name, value)  # as outside the tests, where no type is checked
    found.__post_init__()
    again = PatchEffects.load(found.save(tmp_path / "effects.safetensors"))
    assert found.groups == again.groups == tuple("3345678")
    assert found.labels == again.labels == {"head": ("0", "1", "2")}
    assert again.templates == ("1",) * 7
