"""faithlens: why a model goes along with a false premise, and how to stop it.

The flat surface for notebooks and scripts. Data walks in one direction::

    premises → known facts → split → effects of heads → a head set → a constraint → evaluation

Each stage takes a value and returns a value; stop anywhere and look. FAITH is arXiv 2402.19103.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import (
        evaluation,
        experts,
        explore,
        exported,
        heads,
        interventions,
        models,
        moelora,
        patching,
        premises,
        report,
        tasks,
    )
    from interp.asking import compare_answers
    from interp.attached import attach
    from interp.errors import UserError
    from interp.evaluation import (
        AttentionPattern,
        Evaluation,
        TokenSaliency,
        attention_pattern,
        evaluate,
        token_saliency,
    )
    from interp.exported import from_hub, load_exported, push_to_hub
    from interp.heads import HeadEffects, HeadSet, JointEffects, locate_heads
    from interp.interventions import Constraint, ExpertConstraint, Intervention, constrain
    from interp.interventions.generate import generate
    from interp.models import load_model
    from interp.premises import filter_known, list_relations, load_premises, load_questions
    from interp.report.atlas import Atlas, atlas
    from interp.report.head_card import HeadCard, head_card
    from probes.detector.detect import detect

from interp.moved import keep_old_paths

__version__ = "0.1.0"

keep_old_paths()

__all__ = [
    "Atlas",
    "AttentionPattern",
    "Constraint",
    "Evaluation",
    "ExpertConstraint",
    "HeadCard",
    "HeadEffects",
    "HeadSet",
    "Intervention",
    "JointEffects",
    "TokenSaliency",
    "UserError",
    "atlas",
    "attach",
    "attention_pattern",
    "compare_answers",
    "constrain",
    "detect",
    "evaluate",
    "evaluation",
    "experts",
    "explore",
    "exported",
    "filter_known",
    "from_hub",
    "generate",
    "head_card",
    "heads",
    "interventions",
    "list_relations",
    "load_exported",
    "load_model",
    "load_premises",
    "load_questions",
    "locate_heads",
    "models",
    "moelora",
    "patching",
    "premises",
    "push_to_hub",
    "report",
    "tasks",
    "token_saliency",
]


_HOMES = {
    "interp.asking": ("compare_answers",),
    "interp.attached": ("attach",),
    "interp.interventions.generate": ("generate",),
    "interp.errors": ("UserError",),
    "interp.evaluation": (
        *("AttentionPattern", "Evaluation", "TokenSaliency"),
        *("attention_pattern", "evaluate", "token_saliency"),
    ),
    "interp.exported": ("from_hub", "load_exported", "push_to_hub"),
    "interp.heads": ("HeadEffects", "HeadSet", "JointEffects", "locate_heads"),
    "interp.interventions": ("Constraint", "ExpertConstraint", "Intervention", "constrain"),
    "interp.models": ("load_model",),
    "interp.premises": ("filter_known", "list_relations", "load_premises", "load_questions"),
    "interp.report.atlas": ("Atlas", "atlas"),
    "interp.report.head_card": ("HeadCard", "head_card"),
    "probes.detector.detect": ("detect",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Names and modules come when they are asked for: `interp --help` does not wait for models."""
    if name in _HOME_OF:
        found = getattr(importlib.import_module(_HOME_OF[name]), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"interp.{name}") is not None:
        found = importlib.import_module(f"interp.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
