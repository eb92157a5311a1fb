"""Constraining heads while the model runs: FAITH and its variants."""

from interp.interventions.constrain import constrain
from interp.interventions.constraint import SITE_MODES, Constraint, Mode
from interp.interventions.places import Places, places_at, places_of_premises

__all__ = [
    "SITE_MODES",
    "Constraint",
    "Mode",
    "Places",
    "constrain",
    "places_at",
    "places_of_premises",
]
