"""The nulls: margins, agreement with shuffling tokens one by one, and p-values by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_hypergeom

from interp.experts import RoutingRecords
from interp.experts.routing.counter import RoutingCounter, TokenLabels
from interp.experts.routing.nulls import p_value, permuted_texts, permuted_within_token
from interp.experts.routing.records import Projection
from interp.experts.routing.tables import Sizes

SIZES = Sizes(1, 3, 2, tasks=2, folds=2, units=6, ids=2, routers=0, id_routers=0)


@pytest.fixture(scope="module")
def tokens() -> dict[str, Any]:
    """30 tokens of 6 units; ids 0 and 1 have rows, the last row is for others."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(6), 5)
    return {
        "unit": unit,
        "task": unit % 2,
        "row": rng.choice(3, 30, p=[0.4, 0.4, 0.2]),
        "logits": rng.normal(size=(30, 3)),
    }


@pytest.fixture(scope="module")
def records(tokens: dict[str, Any]) -> RoutingRecords:
    zeros = torch.zeros(30, dtype=torch.long)
    unit = torch.from_numpy(tokens["unit"])
    labels = TokenLabels(
        task=unit % 2,
        fold=unit // 3,
        unit=unit,
        row=torch.from_numpy(tokens["row"]),
        token_class=zeros,
        position=zeros,
        follows=zeros.bool(),
    )
    counter = RoutingCounter(SIZES)
    counter.add_tokens(labels)
    counter.add(0, torch.from_numpy(tokens["logits"]).float(), labels)
    return RoutingRecords(
        (Projection("q", 0, "q", 3),),
        SIZES,
        ("a", "b"),
        (7, 8),
        ("x", "y"),
        (0, 1, 0, 1, 0, 1),
        (0, 0, 0, 1, 1, 1),
        counter.tables,
    )


def member_of(tokens: dict[str, Any]) -> np.ndarray:
    member = np.ones((30, 3), dtype=int)
    member[np.arange(30), tokens["logits"].argmin(axis=1)] = 0
    return member


def test_permuted_texts_deal_out_whole_units(
    tokens: dict[str, Any], records: RoutingRecords
) -> None:
    drawn = permuted_texts(records, draws=250, seed=0)
    assert drawn.shape == (250, 1, 2, 3)
    member = member_of(tokens)
    by_unit = np.stack([member[tokens["unit"] == one].sum(axis=0) for one in range(6)])
    np.testing.assert_array_equal(drawn.sum(axis=2), np.tile(by_unit.sum(axis=0), (250, 1, 1)))
    possible = {
        tuple(by_unit[[a, b, c]].sum(axis=0)) for a in range(6) for b in range(a) for c in range(b)
    }
    seen = {tuple(one) for one in drawn[:, 0, 0]}
    assert seen == possible


def test_within_token_margins_and_distribution(
    tokens: dict[str, Any], records: RoutingRecords
) -> None:
    draws = 4000
    drawn = permuted_within_token(records, draws=draws, seed=0)[:, 0]
    member = member_of(tokens)
    of_task = np.stack([member[tokens["task"] == one].sum(axis=0) for one in range(2)])
    # Sums over tasks and over experts stay; a task keeps its tokens of every id.
    np.testing.assert_array_equal(drawn.sum(axis=1), np.tile(member.sum(axis=0), (draws, 1)))
    np.testing.assert_array_equal(drawn.sum(axis=2), np.tile(of_task.sum(axis=1), (draws, 1)))
    # A slow reference: shuffle the tasks of the tokens of each id, one by one.
    rng = np.random.default_rng(1)
    reference = []
    for _ in range(draws):
        task = tokens["task"].copy()
        for row in (0, 1):
            where = np.flatnonzero(tokens["row"] == row)
            task[where] = task[rng.permutation(where)]
        reference.append(member[task == 0].sum(axis=0))
    reference = np.array(reference)
    np.testing.assert_allclose(drawn[:, 0].mean(axis=0), reference.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn[:, 0].T), np.cov(reference.T), atol=0.12)


def test_within_token_is_multivariate_hypergeometric(
    tokens: dict[str, Any], records: RoutingRecords
) -> None:
    """One id: the choices of a task's tokens are drawn without replacement."""
    drawn = permuted_within_token(records, draws=4000, seed=3)[:, 0, 0]
    expected, variance = np.zeros(3), np.zeros((3, 3))
    code_of: dict[Any, int] = {(0, 1): 0, (0, 2): 1, (1, 2): 2}
    incidence = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    member = member_of(tokens)
    for row in (0, 1, 2):
        here = tokens["row"] == row
        codes = [code_of[tuple(np.flatnonzero(one).tolist())] for one in member[here]]
        counts = np.bincount(codes, minlength=3)
        if row == 2:  # others stay as they are
            expected += member[here & (tokens["task"] == 0)].sum(axis=0)
            continue
        first = int((here & (tokens["task"] == 0)).sum())
        law = multivariate_hypergeom(m=counts, n=first)
        expected += incidence.T @ law.mean()
        variance += incidence.T @ law.cov() @ incidence
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), variance, atol=0.12)


def test_p_values_by_hand() -> None:
    null = np.array([1.0, 2.0, 3.0, 4.0])
    assert p_value(3.0, null) == pytest.approx((1 + 2) / 5)
    assert p_value(3.0, null, "less") == pytest.approx((1 + 3) / 5)
    assert p_value(5.0, null) == pytest.approx(1 / 5)
    assert p_value(5.0, null, "two-sided") == pytest.approx(2 / 5)
    assert p_value(2.5, null, "two-sided") == 1
    assert np.isnan(p_value(np.nan, null))
    assert np.isnan(p_value(1.0, np.empty(0)))
    together = p_value(np.array([3.0, 5.0]), np.stack([null, null], axis=1))
    np.testing.assert_allclose(together, [0.6, 0.2])
