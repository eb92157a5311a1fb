"""Constraints of every site and mode, and how close their numbers have to be."""

from typing import Any

from interp.heads import HeadSet
from interp.interventions import Constraint

HEADS = ((0, 1), (1, 2), (0, 3))
SETTINGS = [
    ("output", "zero", 0.0),
    ("output", "mean", 0.0),
    ("output", "resample", 0.0),
    ("output", "scale", 0.5),
    ("attention", "zero", 0.0),
    ("attention", "scale", 2.0),
]
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 5e-5}


def constraint(
    site: Any, mode: Any = "zero", factor: float = 0.0, heads: Any = HEADS
) -> Constraint:
    return Constraint(HeadSet(heads, site), mode, factor)
