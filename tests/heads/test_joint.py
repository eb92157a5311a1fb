"""Effects in several relations, pooled by hand, and a head that is planted in all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.figures.relations import MIXED
from interp.heads import HeadEffects, JointEffects, locate_heads, pool_effects
from interp.models import HookedModel
from interp.premises import Premises
from interp.statistics import significance
from interp.statistics.significance import strata_of_groups


def effects(*means: float, subjects: int = 6, noise: float = 0.0, **other: Any) -> HeadEffects:
    """One layer, a head for each mean; every subject has one prompt."""
    values = torch.tensor(means).expand(subjects, 1, len(means)).clone()
    values += noise * torch.linspace(-1, 1, subjects)[:, None, None]
    names = tuple(f"subject{number}" for number in range(subjects))
    given: dict[str, Any] = {"site": "attention", "method": "attribution", "source": "cut"}
    return HeadEffects(
        values=values,
        probability=values / 10,
        subjects=names,
        templates=("why",) * subjects,
        **given | other,
    )


@pytest.fixture
def joint() -> JointEffects:
    """Shares: a (1, 0.5, 0.25, 0), b (0.1, 1, 0.3, 0.2), with another number of subjects."""
    parts = [effects(4.0, 2.0, 1.0, 0.0), effects(1.0, 10.0, 3.0, 2.0, subjects=18)]
    return pool_effects(parts, ["a", "b"])


def test_pooled_by_hand(joint: JointEffects) -> None:
    assert joint.largest == {"a": 4.0, "b": 10.0}
    assert joint.shares[:, 0].tolist() == [[1, 0.5, 0.25, 0], pytest.approx([0.1, 1, 0.3, 0.2])]
    # The mean share, times the mean of the largest effects (7), whatever the number of subjects.
    expected = 7 * np.array([0.55, 0.75, 0.275, 0.1])
    assert joint.pooled.statistics.mean[0] == pytest.approx(expected, rel=1e-6)
    assert joint.pooled.subjects[:1] == ("a/subject0",)
    assert len(joint.pooled.subjects) == 24
    assert joint.to_dataframe()["effect"].tolist() == pytest.approx(sorted(expected)[::-1])


def test_each_way_to_select_by_hand() -> None:
    parts = [effects(9.0, 6, 5, 4, 0), effects(9.0, 1, 5, 4, 0), effects(0.0, 9, 5, 4.5, 0)]
    joint = pool_effects(parts, ["a", "b", "c"])
    assert [head for _, head in joint.select(count=2)] == [0, 1]  # mean shares 0.67, 0.59, 0.56
    assert [head for _, head in joint.select(count=2, by="worst")] == [2, 3]
    assert [head for _, head in joint.select(count=1, by="votes")] == [0]  # first in two of three
    # Of the best two, each of three heads has two votes: the mean decides.
    assert [head for _, head in joint.select(count=3, by="votes")] == [2, 0, 1]
    assert replace(joint, selected_by="worst").select(count=1).heads == ((0, 2),)
    assert joint.select(fraction=0.2).chosen_by.endswith("over a, b, c")
    assert joint.without("c").select(count=1).heads == ((0, 0),)
    with pytest.raises(UserError, match="unknown relation 'd'"):
        joint.without("d")


def test_a_head_of_one_relation_is_not_found_over_relations() -> None:
    everywhere = [effects(2.0, 0.0, noise=0.3) for _ in range(7)]
    once = effects(2.0, 2.0, noise=0.3)
    joint = pool_effects([once, *everywhere], [f"r{number}" for number in range(8)])
    q_value = joint.over_relations.q_value[0]
    assert q_value[0] < 0.02
    assert q_value[1] > 0.3
    # Its own prompts are as clear as those of the other head.
    assert (once.statistics.q_value < 0.05).all()
    assert joint.select(fdr=0.05).heads == ((0, 0),)
    assert np.isnan(joint.without("r1", "r2", "r3").over_relations.q_value).all()  # five are few


def test_the_table_by_relation(joint: JointEffects) -> None:
    table = joint.relations_dataframe(joint.select(count=1))
    assert list(dict.fromkeys(table["relation"])) == ["a", "b", MIXED]
    by = table.set_index(["relation", "head"])
    assert by.loc[("b", 1), "share"] == 1
    assert by.loc[("b", 1), "effect"] == 10
    assert by.loc[(MIXED, 1), "share"] == pytest.approx(0.75)
    assert table["selected"].sum() == 3
    assert by["rank"].loc[(MIXED, 1)] == 1


def test_stability_beside_its_null() -> None:
    generator = torch.Generator().manual_seed(0)
    means = [torch.rand(40, generator=generator) for _ in range(2)]
    alike, other = (means[0] + 0.01 * means[1]).tolist(), means[1].tolist()
    joint = pool_effects(
        [effects(*means[0].tolist()), effects(*alike), effects(*other)], list("abc")
    )
    table = joint.stability(8).set_index(["a", "b"])
    assert table.loc[("a", "b"), "jaccard"] == 1
    assert table.loc[("a", "b"), "spearman"] > 0.95
    unlike = table.loc[("a", "c")]
    assert unlike["jaccard"] <= unlike["jaccard_null_p95"]
    assert abs(table["spearman_null"]).max() < 0.1 < table["spearman_null_p95"].min()
    # A random set is drawn from all 40 heads, 8/40 of which are shared: 1.6 of 14.4.
    assert table["jaccard_null"].to_numpy() == pytest.approx(0.11, abs=0.02)


def test_the_null_of_the_overlap_by_hand() -> None:
    """3 of a layer's 6 heads: 0 to 3 are shared in 1, 9, 9 and 1 of 20 draws, whatever is observed.

    The mean index is (9 · 1/5 + 9 · 2/4 + 1) / 20 = 0.365, the 95th percentile that of two shared.
    """
    same, other = effects(3.0, 2, 1, 0, 0, 0), effects(0.0, 0, 0, 3, 2, 1)
    for second, observed in ((same, 1.0), (other, 0.0)):
        row = pool_effects([same, second], ["a", "b"]).stability(3).iloc[0]
        assert row["jaccard"] == observed
        assert row["jaccard_null"] == pytest.approx(0.365, abs=0.05)
        assert row["jaccard_null_p95"] in (0.5, 1.0)  # at the border: 95 % of draws share 2 or less


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples and sign flips, for tests that compute statistics of many samples."""
    monkeypatch.setattr(significance, "BOOTSTRAP_RESAMPLES", 300)
    monkeypatch.setattr(significance, "SIGN_FLIPS", 20)


@pytest.mark.usefixtures("few_draws")
def test_few_overlaps_of_unrelated_heads_are_above_chance() -> None:
    """Heads drawn within the layers for each relation alone pass the 95th percentile in ≤ 5 %."""
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(200):
        parts = []
        for _ in range(2):
            mean = torch.zeros(1, 3, 8)
            for layer in range(2):
                mean[0, layer, rng.permutation(8)[:3]] = torch.tensor([3.0, 2.0, 1.0])
            parts.append(
                replace(effects(0.0), values=mean.repeat(6, 1, 1), probability=torch.zeros(6, 3, 8))
            )
        row = pool_effects(parts, ["a", "b"]).stability(6).iloc[0]
        above += row["jaccard"] > row["jaccard_null_p95"]
    # The set's own heads left out, it was a tenth.
    assert above <= 14


def test_pooled_intervals_resample_within_relations() -> None:
    """Relations that differ in size, and not within themselves, leave nothing to resample.

    Weighted by size, a's subjects have 18/24 of a half: drawn all together, their number varied.
    """
    parts = [effects(4.0, 2.0, subjects=6), effects(4.0, 2.0, subjects=18)]
    found = pool_effects(parts, ["a", "b"]).pooled
    assert found.relations == ("a",) * 6 + ("b",) * 18
    low, high = found.statistics.ci_low[0], found.statistics.ci_high[0]
    assert low == pytest.approx([4, 2])
    assert high == pytest.approx([4, 2])
    layer = found.plot(by="layer").to_dict()["data"][0]
    assert layer["y"] == pytest.approx([6])


@pytest.mark.usefixtures("few_draws")
def test_pooled_intervals_cover_the_mean() -> None:
    """The mean over relations of 60 and 12 subjects; half-width 1.96 · √(σ²/60 + σ²/12) / 2."""
    rng, hits, widths = np.random.default_rng(1), 0, []
    for _ in range(100):
        parts = []
        for count in (60, 12):
            values = torch.from_numpy(rng.normal([10.0, 1.0], [1e-6, 0.5], (count, 1, 2))).float()
            names = tuple(f"s{number}" for number in range(count))
            part = effects(10.0, 1.0, subjects=count)
            parts.append(replace(part, values=values, probability=values * 0, subjects=names))
        statistics = pool_effects(parts, ["a", "b"]).pooled.statistics
        low, high = statistics.ci_low[0], statistics.ci_high[0]
        hits += low[1] <= 1.0 <= high[1]
        widths.append(high[1] - low[1])
    exact = 2 * 1.96 * 0.25 * np.sqrt(1 / 60 + 1 / 12)
    assert 88 <= hits <= 99
    assert np.mean(widths) == pytest.approx(exact, rel=0.08)


def test_pooled_p_values_are_valid() -> None:
    """Without effects, p ≤ 0.05 in a twentieth, whatever the relations' sizes."""
    rng = np.random.default_rng(2)
    parts = []
    for count in (30, 6):
        values = torch.from_numpy(rng.normal(0.0, 1.0, (count, 1, 400))).float()
        values[:, 0, 0] = 5.0  # the relations' largest effect
        part = effects(0.0, subjects=count)
        parts.append(replace(part, values=values, probability=values * 0))
    p_values = pool_effects(parts, ["a", "b"]).pooled.statistics.p_value[0, 1:]
    assert 0.02 < (p_values <= 0.05).mean() < 0.08


def test_pooled_effects_are_saved_with_their_relations(joint: JointEffects, tmp_path: Path) -> None:
    path = joint.pooled.save(tmp_path / "effects.safetensors")
    found = HeadEffects.load(path, "attention")
    assert found.relations == joint.pooled.relations
    assert (found.statistics.ci_high == joint.pooled.statistics.ci_high).all()
    assert found.take([0, 7]).relations == ("a", "b")
    with pytest.raises(UserError, match="relations differ in length"):
        replace(found, relations=("a",))
    with pytest.raises(UserError, match="a group lies in two strata"):
        strata_of_groups(found.relations, ["one"] * 24)


def test_what_cannot_be_pooled() -> None:
    a = effects(1.0, 0.5)
    for other, reason in (
        (effects(1.0, 0.5, site="output"), "differ in site"),
        (effects(1.0, 0.5, 0.2), "models of different sizes"),
    ):
        with pytest.raises(UserError, match=reason):
            pool_effects([a, other], ["a", "b"])
    with pytest.raises(UserError, match="as many different relations"):
        pool_effects([a, a], ["a", "a"])
    with pytest.raises(UserError, match="no relations"):
        pool_effects([], [])


def test_a_relation_without_effects_takes_nothing_away() -> None:
    joint = pool_effects([effects(4.0, 2.0), effects(0.0, 0.0)], ["a", "b"])
    assert joint.largest == {"a": 4.0, "b": 1.0}
    assert np.isfinite(joint.shares).all()
    assert joint.ranked()[0] == (0, 0)


def test_figures(joint: JointEffects) -> None:
    figure = joint.plot(joint.select(count=1), by="relation").to_dict()
    assert list(figure["data"][0]["x"]) == ["0.1", "0.0", "0.2", "0.3"]
    assert list(figure["data"][0]["y"]) == ["a", "b", MIXED]
    assert "2 relations: a, b" in joint._repr_html_()
    assert joint.plot().data


def test_the_planted_head_is_first_in_both(
    planted: HookedModel, planted_premises: Premises, planted_heads: dict[str, tuple[int, int]]
) -> None:
    other = replace(planted_premises.relation, name="other")
    parts = [
        planted_premises.with_facts(planted_premises.facts[:8]),
        Premises(other, planted_premises.facts[8:], ("when", "famous")),
    ]
    found = locate_heads(planted, parts, site="attention", progress=False)
    assert found.relations == ("planted", "other")
    assert found.select(count=1).heads == (planted_heads["attention"],)
    alone = locate_heads(planted, parts[1], site="attention", progress=False)
    assert torch.equal(found.by_relation["other"].values, alone.values)
    with pytest.raises(UserError, match="as many different relations"):
        locate_heads(planted, [parts[0], parts[0]], site="attention", progress=False)
