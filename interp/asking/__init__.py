"""Questions answered without and with an intervention, on a hooked or a plain model."""

from interp.asking.compare import compare_answers
from interp.asking.compared import ComparedAnswer, ComparedAnswers

__all__ = ["ComparedAnswer", "ComparedAnswers", "compare_answers"]
