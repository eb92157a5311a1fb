"""faithlens: why a model goes along with a false premise, and how to stop it.

The flat surface for notebooks and scripts. Data walks in one direction::

    premises → known facts → split → effects of heads → a head set → a constraint → evaluation

Each stage takes a value and returns a value; stop anywhere and look. FAITH is arXiv 2402.19103.
"""

import logging
from typing import TYPE_CHECKING

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

from interp.lazy import names_on_demand
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

__getattr__, __dir__ = names_on_demand(__name__)

# PEFT imports bitsandbytes, which on some CPUs warns of a kernel that is missing: models here never
# use it (`interp.quantized.keep_precision`).
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)
