"""Probabilities that can be believed, and how far."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from probes import Calibration, expected_calibration_error, fit_calibration, reliability
from probes.detector.fit import lowest_threshold


def test_the_error_by_hand():
    """Two bins: 0.1 and 0.3 with observed 0.5 (gap 0.3), 0.9 with observed 1 (gap 0.1)."""
    probabilities, labels = np.array([0.1, 0.3, 0.9]), np.array([0, 1, 1])
    curve = reliability(probabilities, labels, bins=2)
    assert curve["predicted"].tolist() == pytest.approx([0.2, 0.9])
    assert curve["observed"].tolist() == [0.5, 1.0]
    assert curve["n"].tolist() == [2, 1]
    error = expected_calibration_error(probabilities, labels, bins=2)
    assert error == pytest.approx((2 * 0.3 + 1 * 0.1) / 3)


def test_platt_finds_the_curve_that_drew_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20000)
    labels = (rng.random(20000) < 1 / (1 + np.exp(-(2 * scores - 1)))).astype(int)
    curve = fit_calibration(scores, labels)
    assert curve.slope == pytest.approx(2, abs=0.1)
    assert curve.intercept == pytest.approx(-1, abs=0.1)
    assert expected_calibration_error(curve(scores), labels) < 0.02
    assert expected_calibration_error(1 - curve(scores), labels) > 0.2


def test_isotonic_by_hand():
    """Scores 1, 2 have one label 1 between them, in the wrong order: both become a half."""
    curve = fit_calibration(
        np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 1, 0, 1]), method="isotonic"
    )
    assert curve(np.array([-1.0, 0.0, 1.0, 1.5, 2.0, 9.0])).tolist() == pytest.approx(
        [0, 0, 0.5, 0.5, 0.5, 1], abs=1e-3
    )


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(-1e3, 1e3))
def test_a_probability_it_is(score, slope, intercept):
    value = Calibration("platt", slope, intercept)(np.array([score]))[0]
    assert 0 <= value <= 1
    assert Calibration.from_dict(Calibration("platt", slope, intercept).to_dict()) == Calibration(
        "platt", slope, intercept
    )


def test_bad_input():
    with pytest.raises(UserError, match="falls with the score"):
        fit_calibration(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1, 1, 0, 0]))
    with pytest.raises(UserError, match="both classes"):
        fit_calibration(np.array([0.0, 1.0]), np.array([1, 1]))
    with pytest.raises(UserError, match="at least one point"):
        Calibration("isotonic")
    with pytest.raises(UserError, match="one probability for each score"):
        Calibration("isotonic", scores=(1.0,), probabilities=())
    with pytest.raises(UserError, match="at least one bin"):
        reliability(np.array([0.5]), np.array([1]), bins=0)
    with pytest.raises(UserError, match="at least one question"):
        expected_calibration_error(np.array([]), np.array([], dtype=int))


def test_scores_on_a_level_piece_of_an_isotonic_curve_keep_their_order() -> None:
    """Else every text beyond the highest twin ties at one, and no threshold parts them."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    curve = fit_calibration(rng.normal(labels * 3.0, 1.0), labels, method="isotonic")
    background = curve(rng.normal(4.0, 1.0, 1000))
    assert len(set(background.tolist())) > 990
    threshold = lowest_threshold(background, np.zeros(1000, int), 0.01)
    assert 0.005 < (background >= threshold).mean() <= 0.01
