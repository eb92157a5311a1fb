"""Overlap of top units: by hand, at chance for noise, one for what is the same in every prompt."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.patching.result import PatchEffects
from interp.patching.stability import chance_overlap, jaccard, stability


def result_of(values: torch.Tensor, **more: Any) -> PatchEffects:
    axes = ("prompt", "layer", "head")[: values.ndim]
    return PatchEffects(values, axes, torch.zeros(len(values)), "z", "exact", "logits", **more)


def test_overlap_by_hand() -> None:
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert jaccard({1}, {2}) == 0
    assert jaccard(set(), set()) == 1


@given(n=st.integers(1, 6), data=st.data())
def test_chance_is_the_mean_over_all_pairs_of_sets(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    sets = [set(chosen) for chosen in combinations(range(n), k)]
    mean = np.mean([jaccard(a, b) for a in sets for b in sets])
    assert chance_overlap(k, n) == pytest.approx(mean)


def test_the_same_effects_in_every_prompt_are_stable() -> None:
    one = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    found = stability(result_of(one.expand(8, 4, 5), templates=("a", "b") * 4), k=3)
    assert found.overlap == (1, 1, 1)
    assert found.between_templates == (1, 1, 1)
    table = found.to_dataframe()
    assert table["frequency"].tolist() == [1, 1, 1]
    top = one.abs().flatten().topk(3).indices.tolist()
    assert set(5 * table["layer"] + table["head"]) == set(top)


def test_a_resample_by_hand() -> None:
    """Two groups, one unit each: a draw of (g, g) has that group's unit on top, else the larger.

    Drawing two of two groups, half of the draws are mixed, a quarter is each group twice.
    """
    values = torch.tensor([[5.0, 0.0], [0.0, 3.0]])
    found = stability(result_of(values), k=1, n_resamples=4000)
    assert found.frequency == pytest.approx([0.75, 0.25], abs=0.03)
    assert found.overlap[0] == pytest.approx(0.75, abs=0.03)
    assert found.overlap[1:] == (0, 1)


def test_groups_are_drawn_whole() -> None:
    """Many prompts of one group are one draw: each group's unit is on top as often as above."""
    values = torch.tensor([[5.0, 0.0]] * 9 + [[0.0, 3.0]])
    found = stability(result_of(values, groups=("a",) * 9 + ("b",)), k=1, n_resamples=4000)
    assert found.frequency == pytest.approx([0.75, 0.25], abs=0.03)


def test_templates_by_hand() -> None:
    """Top two of x: {0, 1}; of y: {1, 2}; of z: {0, 1}. Overlaps 1/3, 1 and 1/3."""
    rows = {"x": [3.0, 2, 0, 0], "y": [0.0, 3, 2, 0], "z": [2.0, 3, 0, 0]}
    values = torch.tensor([rows[name] for name in "xyzxyz"])
    found = stability(result_of(values, templates=tuple("xyzxyz")), k=2)
    assert found.templates is not None
    assert found.templates.to_numpy() == pytest.approx(
        np.array([[1, 1 / 3, 1], [1 / 3, 1, 1 / 3], [1, 1 / 3, 1]])
    )
    assert found.between_templates == pytest.approx((5 / 9, 5 / 9, 5 / 9))


def test_signed_and_absolute_tops_differ() -> None:
    result = result_of(torch.tensor([[-5.0, 1.0]] * 3))
    assert stability(result, k=1).frequency.tolist() == [1, 0]
    assert stability(result, k=1, by="signed").frequency.tolist() == [0, 1]


def test_noise_overlaps_between_templates_by_chance() -> None:
    """The negative control: templates with nothing in common."""
    overlaps, chances = [], []
    for seed in range(12):
        noise = torch.randn(20, 60, generator=torch.Generator().manual_seed(seed))
        found = stability(result_of(noise, templates=("a", "b") * 10), k=10, n_resamples=20)
        assert found.between_templates is not None
        overlaps.append(found.between_templates[0])
        chances.append(found.chance)
    assert np.mean(overlaps) == pytest.approx(chances[-1], abs=0.05)
    assert chances[-1] == pytest.approx(0.1, abs=0.02)


def test_units_that_were_not_measured_are_never_on_top() -> None:
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    values[:, 0] = torch.nan
    values[1:, 1] = torch.nan
    found = stability(result_of(values), k=2)
    assert found.frequency[0] == 0
    assert found.n_units == 3


def test_the_seed_decides() -> None:
    result = result_of(torch.randn(9, 30, generator=torch.Generator().manual_seed(1)))
    first, same, other = (stability(result, k=5, seed=seed) for seed in (0, 0, 1))
    assert (first.frequency == same.frequency).all()
    assert (first.frequency != other.frequency).any()


def test_too_little_is_told() -> None:
    with pytest.raises(UserError, match="top 5 of 4 measured units"):
        stability(result_of(torch.zeros(6, 4)), k=5)
    with pytest.raises(UserError, match="at least two groups"):
        stability(result_of(torch.zeros(6, 4), groups=("a",) * 6), k=2)
