"""Differences of a metric between two runs on the same documents, by hand."""

import math

import numpy as np
import pytest

from interp.harness.paired import difference
from interp.statistics.significance import mean_interval

WITHOUT, CONSTRAINED = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, 1.0, 0, 1, 1]


def test_a_mean_is_paired() -> None:
    """As the interval of the documents' differences: 0, 1, 0, -1, 1, 0, 0, 0."""
    value, low, high = difference(WITHOUT, CONSTRAINED, "mean", seed=3)
    each = np.array(CONSTRAINED) - np.array(WITHOUT)
    wanted = mean_interval(each, [str(i) for i in range(8)], seed=3)
    assert value == pytest.approx(1 / 8)
    assert (value, low, high) == pytest.approx(wanted)
    assert low < value < high


def test_perplexities() -> None:
    """Log-likelihoods -2 and -6 over 2 and 6 words, then twice as unlikely."""
    before, after = [(-2.0, 2), (-6.0, 6)], [(-4.0, 2), (-12.0, 6)]
    value, low, high = difference(before, after, "weighted_perplexity")
    assert value == pytest.approx(math.e**2 - math.e)
    assert (low, high) == pytest.approx((value, value))  # each document alike
    assert difference(before, after, "bits_per_byte")[0] == pytest.approx(1 / math.log(2))
    assert difference([-1.0, -3.0], [-2.0, -4.0], "perplexity")[0] == pytest.approx(
        math.e**3 - math.e**2
    )


def test_nothing_changes_and_nothing_is_known() -> None:
    assert difference(WITHOUT, WITHOUT, "mean") == (0.0, 0.0, 0.0)
    assert all(map(math.isnan, difference(["a"], ["b"], "bleu")))
    value, *interval = difference([1.0], [0.0], "mean")
    assert value == -1.0
    assert all(map(math.isnan, interval))


def test_documents_that_are_not_numbers_are_left_out_of_a_nanmean() -> None:
    nan = float("nan")
    before, after = [nan, 1.0, 0.0, 1.0] * 20, [nan, 1.0, 1.0, 1.0] * 20
    assert difference(before, after, "nanmean") == pytest.approx(
        difference([1.0, 0.0, 1.0] * 20, [1.0] * 60, "mean")
    )
    assert difference([1.0, nan] * 20, [1.0, 0.0] * 20, "nanmean")[0] == pytest.approx(-0.5)
