"""Scoring a constraint: preference, greedy answers, a random null, cost on honest text."""

from interp.evaluation.answer_pair import AnswerPair
from interp.evaluation.evaluate import Evaluation, ask_all, evaluate
from interp.evaluation.preference import Preference, preference
from interp.evaluation.settings import choose_setting, compare_settings
from interp.evaluation.side_effects import SideEffects, neutral_sentences, side_effects

__all__ = [
    "AnswerPair",
    "Evaluation",
    "Preference",
    "SideEffects",
    "ask_all",
    "choose_setting",
    "compare_settings",
    "evaluate",
    "neutral_sentences",
    "preference",
    "side_effects",
]
