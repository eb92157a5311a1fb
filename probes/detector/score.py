"""Scores of a detector on held-out questions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.figures.probe_scores import detection_table, reliability_figure
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.premises import Premises
from probes.detector.calibration import expected_calibration_error, reliability
from probes.detector.detect import detect_premises
from probes.detector.detections import Detector, PremiseDetections
from probes.scoring import auc_with_interval


@dataclass(frozen=True, eq=False)
class DetectionScore(Displayed):
    """A detector's scores on false premises and their twins; rates and AUC are (value, low, high).

    Attributes:
        n, n_subjects: questions (each with its twin), and subjects, which intervals resample.
        auc: how well the probabilities tell false premises from twins.
        fired_on_false, fired_on_twins: how often it fired.
        span_covers_object: share of the detections on false premises whose words hold the whole
            false object; None where nothing fired.
        span_is_object: share whose words are exactly the object; None where nothing fired.
        calibration_error: expected calibration error of the probabilities.
        curve: the reliability curve behind it, see `probes.reliability`.
    """

    n: int
    n_subjects: int
    auc: tuple[float, float, float]
    fired_on_false: tuple[float, float, float]
    fired_on_twins: tuple[float, float, float]
    span_covers_object: tuple[float, float, float] | None
    span_is_object: float | None
    calibration_error: float
    curve: "pd.DataFrame"

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**vars(self), "curve": self.curve.to_dict("records")}

    def plot(self) -> "go.Figure":
        """Observed share of false premises against the predicted probability."""
        return reliability_figure(self.curve)

    def _shown(self) -> Shown:
        words = (
            f"A detector on {self.n} questions about {self.n_subjects} subjects, and their twins."
        )
        return Shown(words, (detection_table(self.to_dict()),), self.plot)


@checked
def score_detections(found: PremiseDetections, *, seed: int = 0) -> DetectionScore:
    """Score detections on premises; see `probes.detector.detections`.

    Raises UserError for questions about a single subject, which give no interval.
    """
    probabilities = np.array([detection.probability for detection in (*found.false, *found.twin)])
    labels = np.array([1] * len(found.false) + [0] * len(found.twin))
    scores = torch.from_numpy(probabilities).float()
    rates = found.to_dict(seed=seed)
    pairs = zip(found.false, found.objects, strict=True)
    exact = [detection.char_span == tuple(wanted) for detection, wanted in pairs if detection.fired]
    covers = rates["span_covers_object"]
    return DetectionScore(
        n=len(found.false),
        n_subjects=len(set(found.subjects)),
        auc=auc_with_interval(scores, torch.from_numpy(labels), found.subjects * 2, seed=seed),
        fired_on_false=tuple(rates["fired_on_false"]),
        fired_on_twins=tuple(rates["fired_on_twins"]),
        span_covers_object=None if covers is None else tuple(covers),
        span_is_object=float(np.mean(exact)) if exact else None,
        calibration_error=expected_calibration_error(probabilities, labels),
        curve=reliability(probabilities, labels),
    )


@checked
def score_detector(
    model: HookedModel,
    premises: Premises,
    detector: Detector,
    *,
    seed: int = 0,
    progress: bool = True,
) -> DetectionScore:
    """Run a detector on every question of the premises and its twin, and score it."""
    found = detect_premises(model, premises, detector=detector, progress=progress)
    return score_detections(found, seed=seed)
