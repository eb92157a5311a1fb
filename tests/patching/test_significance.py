"""Statistics for any axes: by hand, against the heads' own, and with effects left out."""

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test

from interp.errors import UserError
from interp.heads import head_statistics
from interp.statistics.resampling import in_turns, resamples_at_once, units_at_once
from interp.statistics.significance import (
    SIGN_FLIP_BATCH,
    SIGN_FLIPS,
    _sign_flip,
    effect_statistics,
    group_means,
    mean_interval,
)


def names(count: int) -> list[str]:
    return [f"g{i}" for i in range(count)]


def test_sign_flips_by_hand_along_any_axes() -> None:
    """Six groups: all positive gives p = 2/64; of two units the other has no effect at all."""
    values = torch.zeros(6, 1, 2, 1, 1)
    values[:, 0, 1, 0, 0] = torch.tensor([1.0, 2, 3, 4, 5, 6])
    found = effect_statistics(values, names(6))
    assert found.p_value.shape == (1, 2, 1, 1)
    assert found.p_value.ravel() == pytest.approx([1.0, 2 / 64])
    assert found.q_value.ravel() == pytest.approx([1.0, 4 / 64])
    assert found.mean.ravel() == pytest.approx([0, 3.5])


def test_the_heads_have_the_same_statistics() -> None:
    values = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0))
    groups = names(9)
    heads, units = head_statistics(values, groups), effect_statistics(values, groups)
    flat = effect_statistics(values.flatten(1), groups)
    for name in ("mean", "ci_low", "ci_high", "p_value", "q_value"):
        assert (getattr(heads, name) == getattr(units, name)).all()
        assert (getattr(flat, name) == getattr(units, name).ravel()).all()


def test_what_was_not_measured_is_left_out() -> None:
    """A unit's statistics are those of its own prompts; one without any has none."""
    values = torch.randn(10, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    values[:2, 1] = torch.nan
    values[:5, 2] = torch.nan
    values[:, 3] = torch.nan
    found = effect_statistics(values, names(10))
    alone = effect_statistics(values[2:, 1:2], names(10)[2:])
    assert found.mean[1] == alone.mean[0]
    assert found.ci_low[1] == alone.ci_low[0]
    assert found.p_value[1] == alone.p_value[0]
    assert found.mean[2] == pytest.approx(float(values[5:, 2].mean()))
    assert np.isnan([found.p_value[2], found.ci_low[2], found.q_value[2]]).all()  # five groups
    assert np.isnan([found.mean[3], found.p_value[3]]).all()
    # Two units were tested: the false-discovery rate counts no others.
    worst, best = sorted(found.p_value[:2], reverse=True)
    assert sorted(found.q_value[:2]) == pytest.approx(sorted([worst, min(worst, 2 * best)]))


def test_group_means_without_what_is_missing() -> None:
    values = torch.tensor([[1.0, torch.nan], [3.0, 5.0], [10.0, torch.nan]])
    means = group_means(values, ["a", "a", "b"])
    assert means[0].tolist() == [2.0, 5.0]
    assert means[1, 0] == 10
    assert np.isnan(means[1, 1])


def test_effects_below_the_resolution_are_none() -> None:
    values = torch.full((8, 1), 5e-5)
    assert effect_statistics(values, names(8)).p_value[0] == 1
    assert effect_statistics(values, names(8), resolution=1e-6).p_value[0] == 2 / 2**8


def test_noise_is_not_significant_and_a_plant_is() -> None:
    values = torch.randn(14, 5, 6, 2, generator=torch.Generator().manual_seed(2))
    values[:, 3, 1, 1] += 3
    found = effect_statistics(values, names(14))
    assert found.q_value[3, 1, 1] < 0.05
    assert (found.q_value < 0.05).sum() == 1


def test_too_few_groups_or_broken_effects_are_told() -> None:
    with pytest.raises(UserError, match="5 groups are too few for statistics: at least 6"):
        effect_statistics(torch.zeros(20, 2), names(5) * 4)
    with pytest.raises(UserError, match="infinite"):
        effect_statistics(torch.full((8, 2), torch.inf), names(8))
    with pytest.raises(UserError, match="3 prompts but 2 groups"):
        mean_interval([1.0, 2.0, 3.0], ["a", "b"])


def test_few_units_and_resamples_at_a_time_give_the_same_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.randn(9, 11, generator=torch.Generator().manual_seed(0)) + 0.3
    whole, mean = effect_statistics(values, names(9)), mean_interval(values[:, 0].numpy(), names(9))
    monkeypatch.setattr("interp.statistics.resampling.RESAMPLE_BYTES", 3 * 9 * 200 * 16)
    assert units_at_once(9, 200, copies=2) == 3
    parts = effect_statistics(values, names(9))
    for name in ("mean", "ci_low", "ci_high", "p_value", "q_value"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    assert mean_interval(values[:, 0].numpy(), names(9)) == pytest.approx(mean, rel=1e-12)


def test_at_least_one_at_a_time() -> None:
    assert units_at_once(10**9, 10**3) == resamples_at_once(10**12, 50) == 1
    assert resamples_at_once(1, 50) == 50
    assert list(in_turns(7, 3)) == [3, 3, 1]


def _by_scipy(units: np.ndarray, seed: int) -> np.ndarray:
    """The slow way: scipy flips every unit's own values."""
    result = permutation_test(
        (units,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=SIGN_FLIP_BATCH,
        axis=0,
        rng=np.random.default_rng(seed),
    )
    return np.where(np.all(units == 0, axis=0), 1.0, np.clip(result.pvalue, 0.0, 1.0))


@pytest.mark.parametrize("n_groups", [6, 17], ids=["all flips", "random flips"])
@pytest.mark.parametrize("kind", ["any", "many zeros", "whole numbers", "tenths"])
def test_sign_flips_are_scipys_to_the_last_draw(kind: str, n_groups: int) -> None:
    """Also where flips tie with the observed mean: zeros, and sums that meet again."""
    draw = np.random.default_rng(n_groups)
    units = draw.normal(size=(n_groups, 5))
    if kind == "many zeros":
        units[draw.random(units.shape) < 0.6] = 0.0
    elif kind == "whole numbers":
        units = draw.integers(-2, 3, size=units.shape).astype(float)
    elif kind == "tenths":
        units = np.round(units, 1)
    units[:, 4] = 0.0
    assert _sign_flip(units, 3).tolist() == _by_scipy(units, 3).tolist()
    if n_groups > 6:  # the control: other draws are other numbers
        assert _sign_flip(units, 3).tolist() != _sign_flip(units, 4).tolist()
