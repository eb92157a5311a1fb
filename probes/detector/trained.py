"""What trained detectors have in common: raw questions become prompts, which they read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from interp.display import Displayed
from interp.models.hooked_model import HookedModel
from probes.detector.detections import Detection
from probes.detector.questions import AskedQuestion, tokenize_question
from probes.detector.scored import ScoredChunk


class TrainedDetector(Displayed, ABC):
    """A detector that belongs to one model."""

    @abstractmethod
    def check_model(self, model: HookedModel) -> None:
        """Raise UserError for another model, tokenizer or chat template than it was fitted with."""

    @abstractmethod
    def detect_asked(
        self,
        model: HookedModel,
        asked: Sequence[AskedQuestion],
        *,
        progress: bool = True,
        on_chunk: Callable[[ScoredChunk], object] | None = None,
    ) -> tuple[Detection, ...]:
        """One detection a question whose prompt is already made.

        ``on_chunk`` gets what was read of the questions that ran together, with keys and values if
        all blocks ran.
        """

    def detect(
        self,
        model: HookedModel,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> tuple[Detection, ...]:
        """One detection a question, in order; questions run in batches.

        Raises:
            UserError: a detector of another model or other prompts, or an empty question.
        """
        self.check_model(model)
        tokenizer = model.tokenizer
        asked = [tokenize_question(tokenizer, question, system=system) for question in questions]
        return self.detect_asked(model, asked, progress=progress)
