"""Measures on tables that can be worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mutual_info_score

from interp.experts.routing import measures
from interp.statistics.jackknife import jackknife
from interp.statistics.significance import q_values

COUNTS = np.array([[6.0, 2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 4.0]])


def test_load_and_its_spread() -> None:
    load = measures.load_share(COUNTS.sum(axis=0))
    np.testing.assert_allclose(load, [6 / 16, 2 / 16, 4 / 16, 4 / 16])
    # Mean 1/4, deviations 1/8, −1/8, 0, 0: the standard deviation is √(2/64/4).
    assert measures.load_cv(load) == pytest.approx(4 * math.sqrt(2 / 64 / 4))
    assert measures.load_cv(np.full(8, 1 / 8)) == 0


def test_entropy() -> None:
    assert measures.normalised_entropy(np.full(8, 1 / 8)) == pytest.approx(1)
    assert measures.normalised_entropy(np.array([1.0, 0.0, 0.0])) == 0
    assert measures.normalised_entropy(np.array([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5)
    assert measures.normalised_entropy(np.array([1.0])) == 0


def test_dead_experts() -> None:
    assert measures.dead_experts(np.array([0.5, 0.4976, 0.0024, 0.0])) == 2
    assert measures.dead_experts(np.full(4, 0.25)) == 0


def test_information_when_the_expert_says_the_task() -> None:
    # Equal tasks, no expert in common: log 2, however a task's tokens are shared out.
    assert measures.mutual_information(COUNTS) == pytest.approx(math.log(2), abs=1e-12)
    assert measures.mutual_information(np.outer([1.0, 3.0], [2.0, 5.0, 1.0])) == pytest.approx(0)


def test_miller_madow_takes_off_the_cells_that_are_there() -> None:
    # 4 cells, 2 kinds, 4 experts: (4 − 2 − 4 + 1) / (2 · 16) is negative.
    assert measures.miller_madow(COUNTS) == pytest.approx(math.log(2) + 1 / 32)
    rng = np.random.default_rng(0)
    tables = rng.multinomial(2000, np.full(40, 1 / 40), size=400).reshape(400, 10, 4) + 0.0
    assert measures.mutual_information(tables).mean() == pytest.approx(27 / 4000, rel=0.05)
    assert abs(measures.miller_madow(tables).mean()) < 0.0004


def test_domain_specialization_and_spread() -> None:
    # 8 slots of top-2 are 4 tokens: of the first task 6/4… of 2 slots each: 6/8 · 2.
    expected = [[1.5, 0.5, 0, 0], [0, 0, 1.0, 1.0]]
    np.testing.assert_allclose(measures.domain_specialization(COUNTS, top_k=2), expected)
    assert measures.domain_spread(COUNTS) == pytest.approx(0.5)
    assert measures.domain_spread(COUNTS[[0, 0]]) == 0


def test_vocabulary_specialization() -> None:
    assert measures.vocabulary_specialization(COUNTS) == pytest.approx((6 + 4) / 16)
    assert measures.vocabulary_specialization(np.eye(4)) == 1


def test_co_activation() -> None:
    # Tokens {0,1}, {0,1}, {0,2}.
    pairs = np.array([[3.0, 2.0, 1.0], [2.0, 2.0, 0.0], [1.0, 0.0, 1.0]])
    np.testing.assert_allclose(
        measures.co_activation(pairs), [[1, 2 / 3, 1 / 3], [1, 1, 0], [1, 0, 1]]
    )
    assert measures.strongest_pair(pairs) == pytest.approx(2 / 3)
    assert np.isnan(measures.co_activation(np.zeros((2, 2)))).all()


def test_jaccard() -> None:
    counts = np.array([[5.0, 4, 1, 0], [5.0, 1, 4, 0], [0.0, 1, 4, 5]])
    # {0,1}, {0,2}, {2,3}: overlaps 1/3, 0, 1/3.
    assert measures.task_jaccard(counts, top_k=2) == pytest.approx(2 / 9)
    assert measures.task_jaccard(counts[[0, 0]], top_k=2) == 1
    assert np.isnan(measures.task_jaccard(counts[:1], top_k=2))


@settings(max_examples=30)
@given(arrays(np.int64, (3, 5), elements=st.integers(0, 30)))
def test_information_is_that_of_sklearn(counts: np.ndarray) -> None:
    counts[0, 0] += 1
    expected = mutual_info_score(None, None, contingency=counts)
    assert measures.mutual_information(counts.astype(float)) == pytest.approx(expected, abs=1e-9)


def test_leading_axes_are_tables_of_their_own() -> None:
    several = np.stack([COUNTS, np.ones((2, 4)), COUNTS[::-1]])
    for measure in (measures.mutual_information, measures.domain_spread, measures.miller_madow):
        np.testing.assert_allclose(measure(several), [measure(one) for one in several])
    together = measures.task_jaccard(several, top_k=2)
    np.testing.assert_allclose(together, [measures.task_jaccard(one, top_k=2) for one in several])


def test_jackknife_of_a_mean_is_the_usual_interval() -> None:
    values = np.array([1.0, 4.0, 2.0, 9.0, 4.0])
    without = np.array([np.delete(values, one).mean() for one in range(5)])
    low, high = jackknife(values.mean(), without)
    half = 2.7764451 * values.std(ddof=1) / math.sqrt(5)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_q_values_leave_out_what_was_not_tested() -> None:
    found = q_values(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(found, [0.02, np.nan, 0.04])
    assert np.isnan(q_values(np.array([np.nan]))).all()
