"""Linear probes: where in a model a false premise can be read off its activations.

One direction of work: prompts → activations → probes → their score on held-out subjects and
templates, beside controls; and, from the same parts, a detector of false premises in raw questions.
"""

from typing import TYPE_CHECKING

from interp.lazy import names_on_demand

if TYPE_CHECKING:
    from probes.activation_reader import ActivationHook, TokensToRead, read_activations
    from probes.activations import (
        Position,
        PremiseKind,
        TokenActivations,
        collect_activations,
        collect_tokens,
    )
    from probes.control_report import ControlReport, compare_with_controls
    from probes.controls import control_task_auc, random_weights, shuffled_label_auc
    from probes.detector.balance import balanced_questions
    from probes.detector.calibration import (
        Calibration,
        expected_calibration_error,
        fit_calibration,
        reliability,
    )
    from probes.detector.detect import detect, detect_premises
    from probes.detector.detections import Detection, Detector, PremiseDetections
    from probes.detector.detector import PremiseDetector
    from probes.detector.rates import RateTable, at_rates
    from probes.detector.score import DetectionScore, score_detections, score_detector
    from probes.detector.support_detector import SupportDetector, load_detector
    from probes.detector.train import detector_for, train_detector
    from probes.grid import ProbeGrid, probe_grid, probe_heads
    from probes.labelled_activations import LabelledActivations
    from probes.layers import LayerScore, ProbeMap, probe_layers
    from probes.linear import LinearProbe, ProbeMethod, fit_probe
    from probes.scoring import (
        area_under_curve,
        auc_with_interval,
        cross_validated_scores,
        groups_of,
    )
    from probes.store import ActivationStore, store_activations

__all__ = [
    "ActivationHook",
    "ActivationStore",
    "Calibration",
    "ControlReport",
    "Detection",
    "DetectionScore",
    "Detector",
    "LabelledActivations",
    "LayerScore",
    "LinearProbe",
    "Position",
    "PremiseDetections",
    "PremiseDetector",
    "PremiseKind",
    "ProbeGrid",
    "ProbeMap",
    "ProbeMethod",
    "RateTable",
    "SupportDetector",
    "TokenActivations",
    "TokensToRead",
    "area_under_curve",
    "at_rates",
    "auc_with_interval",
    "balanced_questions",
    "collect_activations",
    "collect_tokens",
    "compare_with_controls",
    "control_task_auc",
    "cross_validated_scores",
    "detect",
    "detect_premises",
    "detector_for",
    "expected_calibration_error",
    "fit_calibration",
    "fit_probe",
    "groups_of",
    "load_detector",
    "probe_grid",
    "probe_heads",
    "probe_layers",
    "random_weights",
    "read_activations",
    "reliability",
    "score_detections",
    "score_detector",
    "shuffled_label_auc",
    "store_activations",
    "train_detector",
]

__getattr__, __dir__ = names_on_demand(__name__)
