"""Linear probes: where in a model a false premise can be read off its activations.

One direction of work: prompts → activations → probes → their score on held-out subjects and
templates, beside controls; and, from the same parts, a detector of false premises in raw questions.
"""

from probes.activations import (
    Position,
    PremiseKind,
    TokenActivations,
    collect_activations,
    collect_tokens,
)
from probes.calibration import (
    Calibration,
    expected_calibration_error,
    fit_calibration,
    reliability,
)
from probes.controls import control_task_auc, random_weights, shuffled_label_auc
from probes.detection import DetectionScore, score_detections, score_detector
from probes.detector import PremiseDetector
from probes.grid import ProbeGrid, probe_grid, probe_heads
from probes.grouping import groups_of
from probes.labelled import LabelledActivations
from probes.layers import LayerScore, ProbeMap, probe_layers
from probes.linear import LinearProbe, ProbeMethod, fit_probe
from probes.pairing import balanced_questions
from probes.reading import ActivationHook, TokensToRead, read_activations
from probes.scoring import area_under_curve, auc_with_interval, cross_validated_scores
from probes.store import ActivationStore, store_activations
from probes.train import detector_for, train_detector
from probes.verdict import ControlReport, compare_with_controls

__all__ = [
    "ActivationHook",
    "ActivationStore",
    "Calibration",
    "ControlReport",
    "DetectionScore",
    "LabelledActivations",
    "LayerScore",
    "LinearProbe",
    "Position",
    "PremiseDetector",
    "PremiseKind",
    "ProbeGrid",
    "ProbeMap",
    "ProbeMethod",
    "TokenActivations",
    "TokensToRead",
    "area_under_curve",
    "auc_with_interval",
    "balanced_questions",
    "collect_activations",
    "collect_tokens",
    "compare_with_controls",
    "control_task_auc",
    "cross_validated_scores",
    "detector_for",
    "expected_calibration_error",
    "fit_calibration",
    "fit_probe",
    "groups_of",
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
