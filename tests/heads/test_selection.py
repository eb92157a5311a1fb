"""Choosing heads, by hand; random sets that match them."""

from collections import Counter
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.heads import HeadEffects, HeadSet, count_of_fraction, random_head_sets

MEANS = [[0.1, 0.9, -0.5, 0.3], [0.2, 0.0, 0.8, -0.1]]
RANKED = ((0, 1), (1, 2), (0, 3), (1, 0), (0, 0), (1, 1), (1, 3), (0, 2))


def effects(values: Any = None, probability: Any = None, n_prompts: int = 8) -> HeadEffects:
    if values is None:
        values = torch.tensor(MEANS).expand(n_prompts, 2, 4).clone()
    return HeadEffects(
        values=values,
        probability=torch.zeros_like(values) if probability is None else probability,
        subjects=tuple(f"s{i}" for i in range(len(values))),
        templates=("why",) * len(values),
        site="attention",
        method="activation",
        source="cut",
    )


def test_ranking_by_mean_effect() -> None:
    assert effects().ranked() == RANKED
    assert effects().rank.tolist() == [[5, 1, 8, 3], [4, 6, 2, 7]]


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_by_count(count: int) -> None:
    chosen = effects().select(count=count)
    assert chosen.heads == RANKED[:count]
    assert chosen.site == "attention"
    assert "activation" in chosen.chosen_by


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.01, 1), (0.125, 1), (0.3, 2), (0.5, 4), (1.0, 8)]
)
def test_by_fraction(fraction: float, count: int) -> None:
    assert effects().select(fraction=fraction).heads == RANKED[:count]


def test_one_percent_of_a_real_model() -> None:
    assert count_of_fraction(0.01, 270) == 3
    assert count_of_fraction(0.03, 270) == 8
    assert count_of_fraction(0.0001, 270) == 1


def test_by_false_discovery_rate() -> None:
    """Constant effects of eight subjects have p = 2/256; the noisy head has p near one."""
    values = torch.tensor(MEANS).expand(8, 2, 4).clone()
    values[:, 0, 3] = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -0.9])
    chosen = effects(values).select(fdr=0.05)
    # Without (0, 2) and (1, 3), which harm the answer when they are edited, and (1, 1), zero.
    assert chosen.heads == ((0, 1), (1, 2), (1, 0), (0, 0))
    assert effects(torch.zeros(8, 2, 4)).select(fdr=0.05).heads == ()


def test_by_the_papers_vote() -> None:
    """E ≥ 0.1 counts, however large; the mean of E breaks ties."""
    probability = torch.zeros(8, 2, 4)
    probability[:3, 1, 3] = 0.1  # three votes, the threshold included
    probability[:1, 0, 0] = 0.9  # one vote, the largest mean of all
    probability[:2, 0, 2] = 0.2  # two votes
    probability[:2, 1, 1] = 0.3  # two votes, a larger mean
    probability[:, 0, 1] = 0.09  # none
    one = effects(probability=probability)
    assert one.select(count=5, vote=0.1).heads == ((1, 3), (1, 1), (0, 2), (0, 0), (0, 1))
    assert one.select(count=1).heads == ((0, 1),)
    assert "0.1" in one.select(count=1, vote=0.1).chosen_by
    assert one.select(fraction=0.25, vote=0.05).heads[0] == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of fraction, count and fdr, not none"),
        ({"count": 1, "fdr": 0.1}, r"not \['count', 'fdr'\]"),
        ({"count": 9}, "cannot choose 9 of 8"),
        ({"count": -1}, "cannot choose -1 of 8"),
        ({"fraction": 0.0}, "above 0 and at most 1, not 0"),
        ({"fraction": 1.5}, "not 1.5"),
        ({"fdr": 0.0}, "between 0 and 1, not 0"),
        ({"fdr": 1.0}, "between 0 and 1, not 1"),
        ({"fdr": 0.05, "vote": 0.1}, "a vote ranks heads"),
    ],
)
def test_choices_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        effects().select(**options)


def test_random_sets_match_per_layer_and_leave_the_chosen_out() -> None:
    chosen = HeadSet(((3, 0), (3, 5), (1, 2), (7, 8)), "attention")
    sets = random_head_sets(chosen, n_layers=9, n_heads=9, n_sets=50, seed=3)
    assert len(sets) == 50
    for one in sets:
        assert one.site == "attention"
        assert Counter(layer for layer, _ in one) == {3: 2, 1: 1, 7: 1}
        assert not set(one) & set(chosen)
        assert all(0 <= head < 9 for _, head in one)
    assert len(set(sets)) > 40
    drawn = {head for one in sets for head in one}
    assert len(drawn) == 7 + 8 + 8  # every other head of these layers comes up


def test_the_seed_decides_the_random_sets() -> None:
    chosen = HeadSet(((0, 0), (1, 1)))
    assert random_head_sets(chosen, n_layers=9, n_heads=9, n_sets=5, seed=1) == random_head_sets(
        chosen, n_layers=9, n_heads=9, n_sets=5, seed=1
    )
    assert random_head_sets(chosen, n_layers=9, n_heads=9, n_sets=5, seed=1) != random_head_sets(
        chosen, n_layers=9, n_heads=9, n_sets=5, seed=2
    )


def test_random_sets_of_no_head_are_empty() -> None:
    assert [
        one.heads for one in random_head_sets(HeadSet(()), n_layers=2, n_heads=4, n_sets=3)
    ] == [(), (), ()]


def test_a_layer_that_is_mostly_chosen_borrows_from_the_nearest() -> None:
    chosen = HeadSet(((2, 0), (2, 1), (2, 3)))
    for one in random_head_sets(chosen, n_layers=5, n_heads=4, n_sets=20):
        per_layer = Counter(layer for layer, _ in one)
        assert per_layer[2] == 1  # (2, 2), all that is left there
        assert sum(per_layer.values()) == 3
        assert set(per_layer) <= {1, 2, 3}
        assert not set(one) & set(chosen)


def test_more_than_half_of_the_model_has_no_match() -> None:
    chosen = HeadSet(tuple((layer, head) for layer in (0, 1) for head in range(3)))
    with pytest.raises(UserError, match="no random set can match 6 of 8 heads"):
        random_head_sets(chosen, n_layers=2, n_heads=4, n_sets=20)
