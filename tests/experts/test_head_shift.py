"""Heads before and after fine-tuning: by hand, with heads that moved, and with none that did."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from interp.errors import UserError
from interp.experts.heads import compare_heads
from interp.heads import HeadEffects, HeadSet
from interp.heads.compare import rank_correlation


def effects(values: Tensor, /, **changed: Any) -> HeadEffects:
    """One prompt a subject."""
    n = len(values)
    content: dict[str, Any] = {
        "values": values,
        "probability": values,
        "subjects": tuple(f"s{i}" for i in range(n)),
        "templates": ("why",) * n,
        "site": "output",
        "method": "activation",
        "source": "zero",
    }
    return HeadEffects(**(content | changed))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    result: Any = spearmanr(first, second)
    return float(result.statistic)


def noisy(mean: Tensor, seed: int, n: int = 24, noise: float = 0.5) -> HeadEffects:
    generator = torch.Generator().manual_seed(seed)
    return effects(mean + noise * torch.randn(n, *mean.shape, generator=generator))


def test_by_hand() -> None:
    """Means 4 3 2 1 0 0.5 before, the first two swapped with the last two after."""
    before = torch.tensor([[4.0, 3.0, 2.0], [1.0, 0.0, 0.5]]).expand(6, -1, -1)
    after = torch.tensor([[0.0, 0.5, 2.0], [1.0, 4.0, 3.0]]).expand(6, -1, -1)
    found = compare_heads(effects(before), effects(after), top_k=3)
    # Ranks 6 5 4 3 1 2 and 1 2 4 3 6 5: squared differences 25 9 0 0 25 9.
    assert found.spearman == pytest.approx((1 - 6 * 68 / (6 * 35),) * 3)
    # Top three 0 1 2 and 4 5 2: one shared of five.
    assert found.jaccard == (0.2, 0.2, 0.2)
    table = found.to_dataframe()
    assert table.loc[0, ["layer", "head", "before", "after", "change"]].tolist() == [0, 0, 4, 0, -4]
    assert found.effect_of(HeadSet(((0, 0), (1, 1)))) == {"before": 2.0, "after": 2.0}
    assert found.effect_of([(0, 1), (0, 2)]) == {"before": 2.5, "after": 1.25}
    assert found.to_dict()["n_heads"] == 6


@given(n=st.integers(2, 7), data=st.data())
@settings(max_examples=15, deadline=None)
def test_chance_overlap_is_the_mean_over_all_pairs_of_sets(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    values = torch.zeros(2, 1, n)
    found = compare_heads(effects(values), effects(values), top_k=k)
    sets = [set(one) for one in combinations(range(n), k)]
    indices = [len(sets[0] & one) / len(sets[0] | one) for one in sets]
    assert found.chance_jaccard == pytest.approx(np.mean(indices))
    assert found.jaccard_p_value == pytest.approx(1 / len(sets))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (HeadSet(()), "no heads to take the effect of"),
        (HeadSet(((0, 0),), "attention"), "chosen for site 'attention', not 'output'"),
        ([(0, 3)], "head 3 of layer 0 was not measured"),
        ([(1, 0)], "head 0 of layer 1 was not measured"),
    ],
)
def test_effects_of_heads_that_are_not_there(heads: Any, message: str) -> None:
    values = torch.ones(6, 2, 3)
    values[:, 1, 0] = torch.nan
    found = compare_heads(effects(values), effects(values), top_k=2)
    with pytest.raises(UserError, match=message):
        found.effect_of(heads)


def test_the_interval_is_that_of_a_loop_that_leaves_out_each_subject() -> None:
    """Prompts of a subject are averaged, and a subject is left out in both models at once."""
    mean = torch.linspace(0, 3, 12).reshape(3, 4)
    subjects = tuple(f"s{i // 2}" for i in range(24))
    pair = [noisy(mean, seed, noise=2.0) for seed in (1, 2)]
    pair = [effects(one.values, subjects=subjects) for one in pair]
    found = compare_heads(pair[0], pair[1])
    means = [one.values.reshape(12, 2, -1).mean(dim=1).numpy() for one in pair]
    without = [
        correlation(*(np.delete(one, subject, axis=0).mean(axis=0) for one in means))
        for subject in range(12)
    ]
    value, low, high = found.spearman
    assert value == pytest.approx(correlation(*(one.mean(axis=0) for one in means)))
    # 2.201 is Student's 97.5 % quantile with 11 degrees of freedom; (n − 1)/n · Σ = (n − 1) · var.
    half = 2.201 * np.sqrt(11 * np.var(without))
    assert [low, high] == pytest.approx([value - half, min(1.0, value + half)], abs=1e-3)
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, 12, 12) for _ in range(2000)]
    tops = [[set(np.argsort(-one[i].mean(axis=0))[:10]) for one in means] for i in drawn]
    slow = [len(a & b) / len(a | b) for a, b in tops]
    assert np.quantile(slow, [0.025, 0.975]) == pytest.approx(found.jaccard[1:], abs=0.13)


def test_the_interval_holds_its_value_and_covers_the_mean_correlation() -> None:
    """As noisy as heads of 20 subjects are: resampled, most values lay outside their intervals."""
    generator = torch.Generator().manual_seed(3)
    means = [torch.randn(4, 8, generator=generator)]
    means.append(means[0] + 0.3 * torch.randn(4, 8, generator=generator))
    found = [
        compare_heads(*(noisy(mean, 2 * k + i, 20, 2.5) for i, mean in enumerate(means))).spearman
        for k in range(100)
    ]
    assert all(low <= value <= high for value, low, high in found)
    expected = np.mean([value for value, _, _ in found])
    assert sum(low <= expected <= high for _, low, high in found) >= 95


def test_a_sample_of_equal_effects_alone_has_no_correlation() -> None:
    first = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    second = np.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    assert rank_correlation(first, second) == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    # Only the first two subjects have effects: without the other one, all are 0 in one model.
    before, after = torch.zeros(8, 1, 3), torch.zeros(8, 1, 3)
    before[0, 0], after[1, 0] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    found = compare_heads(effects(before), effects(after), top_k=1)
    assert found.spearman == pytest.approx((0.5, 0.5, 0.5))
    assert found.halves["between"] == pytest.approx(0.5)
    assert np.isnan(found.halves["within_before"])  # one half has no effects, however it is split


def test_heads_that_moved_are_told_from_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 6, generator=generator)
    moved = mean.clone()
    moved[2, 3] += 3
    still = compare_heads(noisy(mean, 1), noisy(mean, 2))
    assert still.to_dict()["changed_at_fdr_0.05"] == 0
    halves = still.halves
    assert halves["between"] == pytest.approx(halves["within_before"], abs=0.05)
    assert still.jaccard_p_value < 0.001
    one = compare_heads(noisy(mean, 1), noisy(moved, 2)).to_dataframe()
    assert one.loc[0, ["layer", "head"]].tolist() == [2, 3]
    assert (one["q_value"] < 0.05).tolist() == [True] + [False] * 29
    other = compare_heads(noisy(mean, 1), noisy(torch.randn(5, 6, generator=generator), 2))
    assert other.halves["between"] < 0.5 < other.halves["within_after"]
    assert other.spearman[0] < 0.5
    figure: Any = other.plot(HeadSet(((2, 3),)))
    assert [trace.name for trace in figure.data] == ["no change", "heads", "selected heads"]
    assert "change" in other._repr_html_()


def test_effects_that_are_all_alike_have_no_correlation() -> None:
    flat = effects(torch.zeros(6, 2, 3))
    assert np.isnan(compare_heads(flat, flat, top_k=1).spearman).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subjects": ("other",) * 6}, "differ in subjects"),
        ({"templates": ("when",) * 6}, "differ in templates"),
        ({"site": "attention"}, "differ in site"),
        ({"values": torch.zeros(6, 3, 3), "probability": torch.zeros(6, 3, 3)}, "different sizes"),
    ],
)
def test_what_cannot_be_compared(changed: dict[str, Any], message: str) -> None:
    one = torch.zeros(6, 2, 3)
    with pytest.raises(UserError, match=message):
        compare_heads(effects(one), effects(one, **changed))
    with pytest.raises(UserError, match="cannot take the top 7 of 6"):
        compare_heads(effects(one), effects(one), top_k=7)


def test_heads_that_were_not_edited_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    both = [torch.randn(24, 4, 6, generator=generator) for _ in range(2)]
    for values in both:
        values[:, 1:] = torch.nan  # six heads of the first layer alone
    some = compare_heads(effects(both[0]), effects(both[1]), top_k=3)
    whole = compare_heads(effects(both[0][:, :1]), effects(both[1][:, :1]), top_k=3)
    assert some.to_dict() == whole.to_dict()
    assert some.to_dataframe().equals(whole.to_dataframe())
    with pytest.raises(UserError, match="cannot take the top 10 of 6 heads"):
        compare_heads(effects(both[0]), effects(both[1]))
    with pytest.raises(UserError, match="of different heads"):
        compare_heads(effects(both[0]), effects(both[1].nan_to_num()))
