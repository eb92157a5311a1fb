"""Calibration of scores to probabilities, reliability curves, and expected calibration error.

Platt's method fits a logistic curve to the scores of held-out questions; isotonic regression fits
any rising step function. The reliability curve compares the mean predicted probability of each bin
with the share of false premises in it. The expected calibration error is their mean absolute
difference, weighted by the bins' sizes (Guo et al., arXiv 1706.04599).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from interp.arguments import check_choice
from interp.checked import checked
from interp.errors import UserError
from interp.lazy import isotonic, linear_model, pd

CalibrationMethod = Literal["platt", "isotonic"]
DEFAULT_BINS = 10
CALIBRATION_SHAPE = {
    **{"method": str, "slope": float, "intercept": float},
    **{"scores": [float], "probabilities": [float]},
}
"""What `Calibration.from_dict` takes; see `interp.files.shape.check_shape`."""


SLOPE = 1e-3
"""The rise of an isotonic curve over all scores, on its level pieces too: scores there keep their
order, and a threshold can part them."""


@dataclass(frozen=True)
class Calibration:
    """A rising curve from score to probability, linear between points.

    Attributes:
        method: how it was fitted.
        slope, intercept: of Platt's logistic curve, 1 / (1 + exp(−slope·score − intercept)).
        scores, probabilities: the corners of the isotonic curve; empty for Platt's.

    Raises UserError for a curve that falls, or corners that are not in order.
    """

    method: CalibrationMethod
    slope: float = 1.0
    intercept: float = 0.0
    scores: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_calibration(self.method)
        if self.method == "isotonic" and not self.scores:
            raise UserError("an isotonic calibration needs at least one point")
        if len(self.scores) != len(self.probabilities):
            raise UserError("an isotonic calibration needs one probability for each score")
        numbers = (self.slope, self.intercept, *self.scores, *self.probabilities)
        if not all(math.isfinite(number) for number in numbers):
            raise UserError("a calibration holds a number that is not finite")
        rising = all(np.diff(self.scores) >= 0) and all(np.diff(self.probabilities) >= 0)
        if not rising or (self.method == "platt" and self.slope < 0):
            raise UserError(
                "the calibration falls with the score: the probe does not generalise to held-out "
                "questions; give more facts or another layer"
            )

    def __call__(self, scores: Float[np.ndarray, " question"]) -> Float[np.ndarray, " question"]:
        """The probability of label 1 for each score."""
        values = np.asarray(scores, dtype=float)
        if self.method == "isotonic":
            steps = np.interp(values, self.scores, self.probabilities)
            return (1 - SLOPE) * steps + SLOPE * (0.5 + np.arctan(values) / np.pi)
        return 1 / (1 + np.exp(-np.clip(self.slope * values + self.intercept, -500, 500)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        lists = {"scores": list(self.scores), "probabilities": list(self.probabilities)}
        return {**vars(self), **lists}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Calibration":
        """From the result of `to_dict`, of the shape `CALIBRATION_SHAPE`.

        Raises UserError for an unknown method or a curve that is not valid.
        """
        check_calibration(content["method"])
        return cls(
            content["method"],
            float(content["slope"]),
            float(content["intercept"]),
            tuple(float(number) for number in content["scores"]),
            tuple(float(number) for number in content["probabilities"]),
        )


def check_calibration(method: str) -> None:
    """Raise UserError for an unknown method of calibration."""
    check_choice("calibration", method, get_args(CalibrationMethod))


@checked
def fit_calibration(
    scores: Float[np.ndarray, " question"],
    labels: Int[np.ndarray, " question"],
    *,
    method: CalibrationMethod = "platt",
) -> Calibration:
    """Fit a calibration to scores of questions that the probe was not fitted on.

    Raises:
        UserError: one class only, or scores that fall with the label.
    """
    check_calibration(method)
    if len(set(labels.tolist())) < 2:
        raise UserError("a calibration needs questions of both classes")
    if method == "isotonic":
        curve = isotonic.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
            scores, labels
        )
        return Calibration(
            "isotonic",
            scores=tuple(curve.X_thresholds_.tolist()),
            probabilities=tuple(curve.y_thresholds_.tolist()),
        )
    # Without a penalty to speak of, so that the curve does not depend on the scores' unit.
    curve = linear_model.LogisticRegression(C=1e6).fit(scores[:, None], labels)
    return Calibration("platt", float(curve.coef_[0, 0]), float(curve.intercept_[0]))


@checked
def reliability(
    probabilities: Float[np.ndarray, " question"],
    labels: Int[np.ndarray, " question"],
    *,
    bins: int = DEFAULT_BINS,
) -> "pd.DataFrame":
    """One row for each bin of equal width that holds a question: predicted, observed, n."""
    if bins < 1:
        raise UserError(f"a reliability curve needs at least one bin, got {bins}")
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    rows = []
    for index in np.unique(which):
        inside = which == index
        predicted, observed = (float(values[inside].mean()) for values in (probabilities, labels))
        rows.append((int(index), predicted, observed, int(inside.sum())))
    return pd.DataFrame(rows, columns=["bin", "predicted", "observed", "n"])


@checked
def expected_calibration_error(
    probabilities: Float[np.ndarray, " question"],
    labels: Int[np.ndarray, " question"],
    *,
    bins: int = DEFAULT_BINS,
) -> float:
    """The mean distance of predicted and observed over the bins, weighted by their sizes; 0 to 1.

    Raises UserError for no questions.
    """
    if not len(probabilities):
        raise UserError("a calibration error needs at least one question")
    curve = reliability(probabilities, labels, bins=bins)
    gaps = (curve["predicted"] - curve["observed"]).abs()
    return float((gaps * curve["n"]).sum() / curve["n"].sum())
