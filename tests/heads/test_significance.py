"""Intervals, p- and q-values by hand and by enumeration; noise gives nothing, a plant is found."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.heads import HeadEffects, head_statistics, mean_interval
from interp.statistics.significance import group_means, mean_of_parts_interval


def values_of(per_subject: Any) -> torch.Tensor:
    """Float[prompt layer head] of one layer from an array [subject head]."""
    return torch.as_tensor(np.asarray(per_subject, dtype=np.float32))[:, None, :]


def names(count: int) -> list[str]:
    return [f"s{i}" for i in range(count)]


def enumerated(units: np.ndarray) -> float:
    """Two-sided sign-flip p of one head: twice the smaller tail over all 2ⁿ flips."""
    flips = np.array(list(itertools.product((1, -1), repeat=len(units))))
    means = (flips * units).mean(axis=1)
    observed = units.mean()
    tails = [(means >= observed - 1e-9).mean(), (means <= observed + 1e-9).mean()]
    return min(1.0, 2 * min(tails))


def test_sign_flips_by_hand() -> None:
    """Six subjects, 64 flips. All positive: only the observed one reaches the mean, p = 2/64."""
    units = np.array([[1, 1, 5], [2, 2, -5], [3, 3, 2], [4, 4, -2], [5, 5, 1], [6, -1, -1]])
    # With −1 in place of 6 the sum is 14: so is it with 1 and −1 flipped, and 16 with −1 flipped.
    expected = [2 / 64, 6 / 64, 1.0]
    statistics = head_statistics(values_of(units), names(6))
    assert statistics.p_value[0] == pytest.approx(expected)
    assert statistics.mean[0] == pytest.approx([21 / 6, 14 / 6, 0])
    # Benjamini–Hochberg: p · 3 / rank, made monotone from the largest down.
    assert statistics.q_value[0] == pytest.approx([3 * 2 / 64, 3 / 2 * 6 / 64, 1.0])


@pytest.mark.parametrize("count", [6, 9, 12])
def test_sign_flips_equal_the_enumeration(count: int) -> None:
    units = np.random.default_rng(count).normal(0.4, 1.0, size=(count, 5)).astype(np.float32)
    statistics = head_statistics(values_of(units), names(count))
    expected = [enumerated(units[:, head].astype(float)) for head in range(5)]
    assert statistics.p_value[0] == pytest.approx(expected, abs=1e-9)
    assert statistics.p_value.min() >= 2 / 2**count


def test_false_discovery_rate_by_hand() -> None:
    """p · 4/rank is 8, 12, 8 and 64 of 64ths: made monotone from the largest, 8, 8, 8 and 64."""
    rows = [[1, 1, 1, 1], [2, 2, 2, -1], [3, 3, 3, 1], [4, 4, 4, -1], [5, 5, 5, 1], [6, -1, -1, -1]]
    statistics = head_statistics(values_of(rows), names(6))
    assert statistics.p_value[0] == pytest.approx([2 / 64, 6 / 64, 6 / 64, 1])
    assert statistics.q_value[0] == pytest.approx([8 / 64, 8 / 64, 8 / 64, 1])


def test_no_effect_at_all_has_p_one() -> None:
    statistics = head_statistics(torch.zeros(8, 2, 3), names(8))
    for array in (statistics.p_value, statistics.q_value):
        assert (array == 1).all()
    assert not statistics.mean.any()
    assert not statistics.ci_low.any()
    assert not statistics.ci_high.any()


def test_subjects_are_averaged_first() -> None:
    values = torch.tensor([1.0, 3.0, 10.0])[:, None, None]
    means = group_means(values, ["a", "a", "b"])
    assert means[:, 0, 0].tolist() == [2.0, 10.0]


def test_more_prompts_of_a_subject_are_no_more_evidence() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, 1, 3, generator=generator) + 0.3
    once = head_statistics(values, names(8))
    often = head_statistics(values.repeat(10, 1, 1), names(8) * 10)
    np.testing.assert_allclose(often.p_value, once.p_value, atol=1e-12)
    np.testing.assert_allclose(often.ci_high - often.ci_low, once.ci_high - once.ci_low, rtol=1e-5)
    # Were they subjects of their own, the interval would shrink by about the root of ten.
    apart = head_statistics(values.repeat(10, 1, 1), names(80))
    assert (apart.ci_high - apart.ci_low < 0.5 * (once.ci_high - once.ci_low)).all()


def test_mean_intervals_resample_subjects() -> None:
    data = np.random.default_rng(0).normal(size=20)
    mean, low, high = mean_interval(data, names(20))
    repeated = mean_interval(np.tile(data, 8), names(20) * 8)
    assert mean == pytest.approx(data.mean())
    assert low < mean < high
    assert repeated == pytest.approx((mean, low, high))
    error = data.std(ddof=1) / np.sqrt(20)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_mean_intervals_weigh_prompts_alike() -> None:
    mean, low, high = mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert mean == 0.75
    assert (low, high) == (0.0, 1.0)


def test_mean_intervals_of_little_or_nothing() -> None:
    assert mean_interval([0.2, 0.4], ["a", "a"]) == pytest.approx((0.3, 0.3, 0.3))
    assert np.isnan(mean_interval([], [])).all()
    assert mean_interval([1.0, 1.0, 1.0], ["a", "b", "c"]) == (1.0, 1.0, 1.0)


def test_bootstrap_intervals_cover_the_truth() -> None:
    """95 % of 400 heads with a true mean of one; at n = 25 percentiles lose one or two of them."""
    draws = np.random.default_rng(1).normal(1.0, 2.0, size=(25, 400))
    statistics = head_statistics(values_of(draws), names(25))
    covered = (statistics.ci_low[0] <= 1) & (statistics.ci_high[0] >= 1)
    assert 0.89 <= covered.mean() <= 0.98


def effects_of(values: torch.Tensor, subjects: list[str]) -> HeadEffects:
    return HeadEffects(
        values=values,
        probability=values / 10,
        subjects=tuple(subjects),
        templates=("why",) * len(subjects),
        site="output",
        method="path",
        source="masked",
    )


def test_noise_selects_nothing_at_five_percent() -> None:
    """A family of 60 null heads gives any discovery in at most one run of twenty, on average."""
    runs = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(12, 6, 10, generator=generator)
        runs += bool(effects_of(noise, names(12)).select(fdr=0.05).heads)
    assert runs <= 2


def test_a_planted_effect_is_found_among_noise() -> None:
    false_discoveries = 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(16, 6, 10, generator=generator)
        values[:, 2, 7] += 2.5
        values[:, 4, 1] -= 2.5  # strong, and harmful to the answer: significant, not selected
        effects = effects_of(values, names(16))
        chosen = effects.select(fdr=0.05).heads
        assert chosen[0] == (2, 7)
        assert (4, 1) not in chosen
        false_discoveries += len(chosen) - 1
        assert effects.statistics.q_value[4, 1] < 0.05
    assert false_discoveries <= 1


def test_the_seed_decides_the_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 1, 2, generator=generator)
    first, same, other = (head_statistics(values, names(20), seed=seed) for seed in (0, 0, 1))
    assert (first.ci_low == same.ci_low).all()
    assert (first.p_value == same.p_value).all()
    assert (first.ci_low != other.ci_low).any()


def test_too_little_or_broken_data_is_told() -> None:
    with pytest.raises(UserError, match="5 subjects are too few for statistics: at least 6"):
        head_statistics(torch.zeros(20, 1, 1), names(5) * 4)
    broken = torch.zeros(8, 1, 1)
    broken[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        head_statistics(broken, names(8))
    with pytest.raises(UserError, match="8 prompts but 7 subjects"):
        head_statistics(torch.zeros(8, 1, 1), names(7))


def test_every_part_weighs_the_same_whatever_its_size() -> None:
    """Against a bootstrap by hand; with all right, and with one part all wrong, nothing varies."""
    large, small = 200, 20
    parts, groups = ["a"] * large + ["b"] * small, names(large + small)
    assert mean_of_parts_interval([1.0] * 220, parts, groups) == (1.0, 1.0, 1.0)
    assert mean_of_parts_interval([1.0] * 200 + [0.0] * 20, parts, groups) == (0.5, 0.5, 0.5)
    rng = np.random.default_rng(0)
    values = (rng.random(220) < 0.8).astype(float)
    mean, low, high = mean_of_parts_interval(values, parts, groups)
    assert mean == pytest.approx((values[:200].mean() + values[200:].mean()) / 2)
    drawn = [
        np.mean([rng.choice(values[:200], 200).mean(), rng.choice(values[200:], 20).mean()])
        for _ in range(4000)
    ]
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.02)


def test_a_part_of_one_group_may_be_missing_from_a_resample() -> None:
    found = mean_of_parts_interval([1.0, 1.0, 0.0, 0.0], ["a", "a", "a", "b"], list("wxyz"))
    assert all(np.isfinite(found))
