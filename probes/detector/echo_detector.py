"""``EchoDetector``: a premise detector whose suspicions are tested by an echo.

The probes read every question, in one prefill. Where their score reaches ``floor``, the model goes
on from there: behind the suspected words, without and with the heads' attention to them cut, up to
the end of the question's repetition (`probes.detector.echo`). A logistic regression over the
probes' score and both log-odds decides. Questions below the floor cost nothing more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.display import Shown
from interp.errors import UserError
from interp.files.documents import write_json
from interp.files.shape import check_shape
from interp.files.text import read_json_object
from interp.heads.headset import HeadSet
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from probes.detector.calibration import CALIBRATION_SHAPE, Calibration
from probes.detector.detections import Detection
from probes.detector.detector import PremiseDetector
from probes.detector.echo import check_echo_heads, echo_after_reading
from probes.detector.questions import AskedQuestion
from probes.detector.scored import ScoredChunk, TokenScores
from probes.detector.span import false_words
from probes.detector.trained import TrainedDetector

ECHO = "echo.json"
EVIDENCE = ("score", "echo", "cut_echo")
"""What is weighed: the probes' score, and the log-odds of the words in the echo, uncut and cut."""
_FORMAT = 1
_SHAPE = {
    **{"format": int, "heads": [[int, int]], "weights": [float], "bias": float, "floor": float},
    **{"threshold": float, "training": dict, "calibration": CALIBRATION_SHAPE},
}


@dataclass(frozen=True, eq=False)
class EchoDetector(TrainedDetector):
    """A detector of probes, and the test of what it suspects.

    Attributes:
        probes: finds the words that may be false.
        heads: at site ``attention``; cut in the second echo.
        weights, bias: of `EVIDENCE`, to the log-odds of a false premise.
        floor: the probes' score from which a question is tested; below it no detection fires.
        calibration: from the log-odds to a probability.
        threshold: the probability from which the detector fires.
        training: its training data, and its scores there.
    """

    probes: PremiseDetector
    heads: HeadSet
    weights: tuple[float, float, float]
    bias: float
    floor: float
    calibration: Calibration
    threshold: float
    training: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not np.isfinite([*self.weights, self.bias, self.floor]).all():
            raise UserError("an echo's weights must be finite")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"a threshold is a probability, 0 to 1, not {self.threshold}")

    @property
    def fingerprint(self) -> str:
        """Of the model that it belongs to."""
        return self.probes.fingerprint

    @property
    def layer(self) -> int:
        """The highest block after which the probes read."""
        return self.probes.layer

    @property
    def prompting(self) -> str | None:
        """Fingerprint of tokenizer and chat template, as of the probes."""
        return self.probes.prompting

    def check_model(self, model: HookedModel) -> None:
        """Raise UserError for another model, tokenizer or chat template than it was fitted with."""
        self.probes.check_model(model)
        check_echo_heads(model, self.heads)

    def detect_asked(
        self,
        model: HookedModel,
        asked: Sequence[AskedQuestion],
        *,
        progress: bool = True,
        on_chunk: Callable[[ScoredChunk], object] | None = None,
    ) -> tuple[Detection, ...]:
        """One detection a question whose prompt is already made; see `TrainedDetector`."""
        found: dict[int, Detection] = {}
        for chunk in self.probes.read(model, asked, keys_values=True, progress=progress):
            questions = [asked[index] for index in chunk.prompts]
            detections = self.suspects(questions, chunk.scores)
            spans = {row: part.token_span for row, part in enumerate(detections) if part.token_span}
            echoes = echo_after_reading(
                model,
                [questions[row] for row in spans],
                list(spans.values()),
                heads=self.heads,
                keys_values=chunk.keys_values,
                rows=list(spans),
            )
            for row, echo in zip(spans, echoes, strict=True):
                detections[row] = self.decide(detections[row], chunk.scores[row].question, echo)
            found |= dict(zip(chunk.prompts, detections, strict=True))
            if on_chunk is not None:
                on_chunk(chunk)
        return tuple(found[index] for index in range(len(asked)))

    def suspects(
        self, asked: Sequence[AskedQuestion], scores: Sequence[TokenScores]
    ) -> list[Detection]:
        """The questions from the floor on, with the suspected words; the others do not fire."""
        found = []
        for question, of_tokens in zip(asked, scores, strict=True):
            probability = float(self.probes.calibration(np.array([of_tokens.question]))[0])
            chars = None
            if of_tokens.question >= self.floor:
                chars = false_words(question, of_tokens.falsity, of_tokens.mention)
            if chars is None:
                below = min(probability, float(np.nextafter(self.threshold, 0.0)))
                found.append(Detection(False, below))
            else:
                found.append(Detection(True, probability, chars, question.tokens_at(chars)))
        return found

    def decide(self, suspected: Detection, score: float, echo: Float[np.ndarray, "2"]) -> Detection:
        """What follows for a suspected question from its echoes' log-odds, uncut and cut."""
        log_odds = np.array([score, *echo]) @ np.array(self.weights) + self.bias
        probability = float(self.calibration(np.array([log_odds]))[0])
        if probability < self.threshold:
            return Detection(False, probability)
        return Detection(True, probability, suspected.char_span, suspected.token_span)

    def save(self, folder: str | Path) -> Path:
        """Write the probes' files and ``echo.json`` into a directory; returns it."""
        folder = self.probes.save(folder)
        content = {
            "format": _FORMAT,
            "heads": list(self.heads),
            "weights": list(self.weights),
            "bias": self.bias,
            "floor": self.floor,
            "calibration": self.calibration.to_dict(),
            "threshold": self.threshold,
            "training": self.training,
        }
        write_json(folder / ECHO, content)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, model: HookedModel | None = None) -> "EchoDetector":
        """Read what ``save`` wrote; with ``model``, only if it was trained on that model.

        Raises UserError for a directory without one, damaged files, or another model's.
        """
        folder = Path(folder)
        if not (folder / ECHO).is_file():
            raise UserError(f"there is no echo detector in {folder}: it has no {ECHO}")
        detector = PremiseDetector.load(folder, model=model)
        try:
            content = read_json_object(folder / ECHO, advice="it is cut short or altered")
            check_shape(content, _SHAPE, ECHO, advice="it is cut short or altered")
            if content["format"] != _FORMAT or len(content["weights"]) != len(EVIDENCE):
                raise UserError(f"format {content['format']}, {len(content['weights'])} weights")
            score, echo, cut = map(float, content["weights"])
            found = cls(
                detector,
                HeadSet(tuple((layer, head) for layer, head in content["heads"]), "attention"),
                weights=(score, echo, cut),
                calibration=Calibration.from_dict(content["calibration"]),
                training=content["training"],
                **{name: float(content[name]) for name in ("bias", "floor", "threshold")},
            )
            if model is not None:
                found.check_model(model)
        except UserError as error:
            raise UserError(
                f"the detector in {folder} is damaged ({error}): train it again"
            ) from error
        return found

    def _shown(self) -> Shown:
        words = (
            f"Probes, and an echo under {len(self.heads)} heads, of model {self.fingerprint[:12]}; "
            f"tests questions from score {self.floor:.2f} on, fires from probability "
            f"{self.threshold:.2f} on."
        )
        rows = [(name, str(value)) for name, value in self.training.items()]
        return Shown(words, (pd.DataFrame(rows, columns=["training", "value"]),) if rows else ())


AnyDetector = PremiseDetector | EchoDetector
"""What is trained and kept."""


def load_detector(folder: str | Path, *, model: HookedModel | None = None) -> AnyDetector:
    """The detector of a directory, of whichever kind it is. Raises UserError as their ``load``."""
    if (Path(folder) / ECHO).is_file():
        return EchoDetector.load(folder, model=model)
    return PremiseDetector.load(folder, model=model)
