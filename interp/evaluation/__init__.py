"""Evaluate an intervention: preference, greedy answers, a random null, cost on neutral text."""

from typing import TYPE_CHECKING

from interp.lazy import names_on_demand

if TYPE_CHECKING:
    from interp.evaluation.answer_pair import AnswerPair
    from interp.evaluation.answers import ask_all
    from interp.evaluation.evaluate import Evaluation, evaluate
    from interp.evaluation.fluency import answer_log_probabilities
    from interp.evaluation.judges import Judge, ModelJudge, Verdict, judge_by_words
    from interp.evaluation.preference import Preference, preference
    from interp.evaluation.question_answers import QuestionAnswers, evaluate_questions
    from interp.evaluation.settings import choose_setting, compare_settings
    from interp.evaluation.side_effects import SideEffects, neutral_sentences, side_effects
    from interp.evaluation.transfer import Transfer, leave_one_out, score_transfer
    from interp.inspection.attention import AttentionPattern, attention_pattern
    from interp.inspection.flow import InformationFlow, information_flow
    from interp.inspection.head_writing import HeadWriting, head_writing
    from interp.inspection.saliency import TokenSaliency, token_saliency
    from interp.inspection.uncertainty import Uncertainty, uncertainty
    from probes.detector.detect import detect_premises
    from probes.detector.detections import PremiseDetections

__all__ = [
    "AnswerPair",
    "AttentionPattern",
    "Evaluation",
    "HeadWriting",
    "InformationFlow",
    "Judge",
    "ModelJudge",
    "Preference",
    "PremiseDetections",
    "QuestionAnswers",
    "SideEffects",
    "TokenSaliency",
    "Transfer",
    "Uncertainty",
    "Verdict",
    "answer_log_probabilities",
    "ask_all",
    "attention_pattern",
    "choose_setting",
    "compare_settings",
    "detect_premises",
    "evaluate",
    "evaluate_questions",
    "head_writing",
    "information_flow",
    "judge_by_words",
    "leave_one_out",
    "neutral_sentences",
    "preference",
    "score_transfer",
    "side_effects",
    "token_saliency",
    "uncertainty",
]

__getattr__, __dir__ = names_on_demand(__name__)
