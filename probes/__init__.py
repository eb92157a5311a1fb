"""Linear probes: where in a model a false premise can be read off its activations.

One direction of work: prompts → activations at one token → a probe per layer → its score on
held-out subjects and templates, beside a control with shuffled labels.
"""

from probes.activations import ActivationHook, Position, PremiseKind, collect_activations
from probes.controls import shuffled_label_auc
from probes.labelled import LabelledActivations
from probes.layers import LayerScore, ProbeMap, probe_layers
from probes.linear import LinearProbe, fit_probe
from probes.scoring import area_under_curve, auc_with_interval, cross_validated_scores

__all__ = [
    "ActivationHook",
    "LabelledActivations",
    "LayerScore",
    "LinearProbe",
    "Position",
    "PremiseKind",
    "ProbeMap",
    "area_under_curve",
    "auc_with_interval",
    "collect_activations",
    "cross_validated_scores",
    "fit_probe",
    "probe_layers",
    "shuffled_label_auc",
]
