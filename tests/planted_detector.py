"""A detector that knows the planted facts: cityN is the capital of landN."""

from collections.abc import Sequence
from typing import Any

from probes.detector.detections import Detection
from probes.detector.questions import tokenize_question


class KnowsPlantedFacts:
    """Fires on every question that names a country other than the city's own, at the country.

    Attributes:
        asked: all questions that it has read.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []

    def detect(
        self,
        model: Any,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> tuple[Detection, ...]:
        self.asked += questions
        return tuple(self._of(model, question) for question in questions)

    def _of(self, model: Any, question: str) -> Detection:
        words = question.replace("?", " ").replace(",", " ").split()
        city, land = (next(w for w in words if w.startswith(kind)) for kind in ("city", "land"))
        if city.removeprefix("city") == land.removeprefix("land"):
            return Detection(False, 0.1)
        span = (question.index(land), question.index(land) + len(land))
        return Detection(
            True, 0.9, span, tokenize_question(model.tokenizer, question).tokens_at(span)
        )
