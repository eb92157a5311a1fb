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
from interp.evaluation import (
    AttentionPattern,
    Evaluation,
    TokenSaliency,
    attention_pattern,
    evaluate,
    token_saliency,
)
from interp.heads import HeadEffects, HeadSet, locate_heads
from interp.interventions import Constraint, ExpertConstraint, Intervention, constrain
from interp.models import load_model
from interp.premises import filter_known, list_relations, load_premises

if TYPE_CHECKING:
    from interp import experts, explore, moelora, report

__version__ = "0.1.0"

__all__ = [
    "AttentionPattern",
    "Constraint",
    "Evaluation",
    "ExpertConstraint",
    "HeadEffects",
    "HeadSet",
    "Intervention",
    "TokenSaliency",
    "UserError",
    "attention_pattern",
    "constrain",
    "evaluate",
    "evaluation",
    "experts",
    "explore",
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
    "report",
    "tasks",
    "token_saliency",
]


def __getattr__(name: str) -> Any:
    """Packages that bring much along, PEFT, Panel or plotly, come when they are asked for."""
    if name in ("moelora", "experts", "explore", "report"):
        return importlib.import_module(f"interp.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
