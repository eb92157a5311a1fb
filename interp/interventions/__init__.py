"""Interventions on a running model: constraints of heads and experts, and the gate."""

from typing import TYPE_CHECKING

from interp.lazy import names_on_demand
from interp.moved import old_names

if TYPE_CHECKING:
    from interp.forward.adapted_projections import AdaptedProjection, projections_of
    from interp.interventions.context import constrain
    from interp.interventions.expert_constraint import ExpertConstraint, ExpertMode, edit_gates
    from interp.interventions.gate import Gate
    from interp.interventions.head_constraint import SITE_MODES, Constraint, Mode
    from interp.interventions.intervention import Intervention
    from interp.interventions.object_positions import (
        ObjectPositions,
        positions_at,
        positions_in_premises,
    )
    from probes.detector.detect import detect
    from probes.detector.detections import Detection, Detector

__all__ = [
    "SITE_MODES",
    "AdaptedProjection",
    "Constraint",
    "Detection",
    "Detector",
    "ExpertConstraint",
    "ExpertMode",
    "Gate",
    "Intervention",
    "Mode",
    "ObjectPositions",
    "constrain",
    "detect",
    "edit_gates",
    "positions_at",
    "positions_in_premises",
    "projections_of",
]

__getattr__, __dir__ = names_on_demand(__name__, old_names(__name__))
