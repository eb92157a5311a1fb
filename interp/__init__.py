"""faithlens: why a model goes along with a false premise, and how to stop it.

The flat surface for notebooks and scripts. Data walks in one direction::

    premises → known facts → split → effects of heads → a head set → a constraint → evaluation

Each stage takes a value and returns a value; stop anywhere and look. FAITH is arXiv 2402.19103.
"""

import importlib
from typing import TYPE_CHECKING, Any

from interp import evaluation, heads, interventions, models, patching, premises, tasks
from interp.answering import generate
from interp.errors import UserError
from interp.evaluation import Evaluation, evaluate
from interp.heads import HeadEffects, HeadSet, locate_heads
from interp.interventions import Constraint, ExpertConstraint, Intervention, constrain
from interp.models import load_model
from interp.premises import filter_known, list_relations, load_premises

if TYPE_CHECKING:
    from interp import experts, moelora

__version__ = "0.1.0"

__all__ = [
    "Constraint",
    "Evaluation",
    "ExpertConstraint",
    "HeadEffects",
    "HeadSet",
    "Intervention",
    "UserError",
    "constrain",
    "evaluate",
    "evaluation",
    "experts",
    "filter_known",
    "generate",
    "heads",
    "interventions",
    "list_relations",
    "load_model",
    "load_premises",
    "locate_heads",
    "models",
    "moelora",
    "patching",
    "premises",
    "tasks",
]


def __getattr__(name: str) -> Any:
    """``interp.moelora`` and ``interp.experts`` come when asked for, as they bring PEFT along."""
    if name in ("moelora", "experts"):
        return importlib.import_module(f"interp.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
