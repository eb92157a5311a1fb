"""``SupportDetector``: a premise detector whose suspicions are tested by the premise's support.

The probes read every question, in one prefill. Where it joins two entities
(`probes.detector.pair`), the falsity at the later one reaches ``floor``, and the mention probe
tells which of the two is the object, the model goes on from the place of the first, without it, up
to the second (`probes.detector.support`): a few tokens. A logistic regression over that falsity,
the support and the best support decides. Other questions cost nothing more, and do not fire: where
a probe cannot tell object from subject, a constraint on the wrong one does harm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from interp.display import Shown
from interp.errors import UserError
from interp.files.documents import write_json
from interp.files.shape import check_shape
from interp.files.text import read_json_object
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from probes.detector.calibration import CALIBRATION_SHAPE, Calibration
from probes.detector.detections import Detection
from probes.detector.detector import SUPPORT, PremiseDetector
from probes.detector.pair import Pair, premise_pair
from probes.detector.questions import AskedQuestion
from probes.detector.scored import ScoredChunk, TokenScores
from probes.detector.support import ReadContrast, contrast_after_reading, supports
from probes.detector.trained import TrainedDetector

EVIDENCE = ("falsity", "support", "best_support")
"""What is weighed: the highest falsity at the later entity's tokens, and two numbers in nats."""
_FORMAT = 2
_NUMBERS = ("bias", "floor", "sureness", "threshold")
_SHAPE = {
    **{"format": int, "weights": [float], **dict.fromkeys(_NUMBERS, float)},
    **{"training": dict, "calibration": CALIBRATION_SHAPE},
}
_OLDER = "echo.json"
"""The file of a test that earlier versions had in its place."""


@dataclass(frozen=True)
class Suspicion:
    """What the probes make of a question.

    Attributes:
        detection: with the suspected words, or not fired where nothing is tested.
        falsity: the highest at the later entity's tokens; minus infinity without a pair.
        sureness: how far apart the two entities' mention scores are, in log-odds.
        pair: the entities between which support is measured; None where it is not.
    """

    detection: Detection
    falsity: float
    sureness: float = 0.0
    pair: Pair | None = None


@dataclass(frozen=True, eq=False)
class SupportDetector(TrainedDetector):
    """A detector of probes, and the test of what it suspects.

    Attributes:
        probes: finds the words that may be false, and the entities.
        weights, bias: of `EVIDENCE`, to the log-odds of a false premise.
        floor: the falsity from which a question is tested; below it no detection fires.
        sureness: the same of the distance between the two entities' mention scores.
        calibration: from the log-odds to a probability.
        threshold: the probability from which the detector fires.
        training: its training data, and its scores there.
    """

    probes: PremiseDetector
    weights: tuple[float, ...]
    bias: float
    floor: float
    calibration: Calibration
    threshold: float
    sureness: float = 0.0
    training: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not np.isfinite([*self.weights, self.bias, self.floor, self.sureness]).all():
            raise UserError("a support test's weights must be finite")
        if len(self.weights) != len(EVIDENCE):
            raise UserError(f"a support test has {len(EVIDENCE)} weights, not {len(self.weights)}")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"a threshold is a probability, 0 to 1, not {self.threshold}")
        if len(self.probes.bias) != 3:
            raise UserError("a support test needs an entity probe, which these probes do not have")
        if not self.probes.uses_predictions:
            raise UserError("a support test needs what the model expected, which is not read here")

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
            suspicions = self.suspects(questions, chunk.scores)
            read = partial(
                contrast_after_reading,
                model,
                keys_values=chunk.keys_values,
                rows=tested_rows(suspicions),
            )
            detections = self.decisions(suspicions, questions, chunk.scores, read=read)
            found |= dict(zip(chunk.prompts, detections, strict=True))
            if on_chunk is not None:
                on_chunk(chunk)
        return tuple(found[index] for index in range(len(asked)))

    def decisions(
        self,
        suspicions: Sequence[Suspicion],
        asked: Sequence[AskedQuestion],
        scores: Sequence[TokenScores],
        *,
        read: ReadContrast,
    ) -> list[Detection]:
        """What follows for some questions; ``read`` runs those that are tested."""
        found = [suspicion.detection for suspicion in suspicions]
        for row, supported in measured(suspicions, asked, scores, read=read).items():
            found[row] = self.decide(suspicions[row], *supported)
        return found

    def suspects(
        self, asked: Sequence[AskedQuestion], scores: Sequence[TokenScores]
    ) -> list[Suspicion]:
        """What is to be tested: questions with a pair whose falsity and sureness are enough."""
        return [self._suspect(*one) for one in zip(asked, scores, strict=True)]

    def _suspect(self, asked: AskedQuestion, scores: TokenScores) -> Suspicion:
        assert scores.entity is not None
        probability = float(self.probes.calibration(np.array([scores.question]))[0])
        pair, falsity, sureness = premise_pair(asked, scores.entity), -np.inf, 0.0
        if pair is not None:
            falsity = scores.highest(scores.falsity, asked, pair.later)
            earlier, later = (scores.highest(scores.mention, asked, span) for span in pair)
            sureness = abs(earlier - later)
            if falsity >= self.floor and sureness >= self.sureness:
                words = pair.earlier if earlier > later else pair.later
                fired = Detection(True, probability, asked.chars_at(words), words)
                return Suspicion(fired, falsity, sureness, pair)
        below = min(probability, float(np.nextafter(self.threshold, 0.0)))
        return Suspicion(Detection(False, below), falsity, sureness)

    def decide(self, suspicion: Suspicion, support: float, best: float) -> Detection:
        """What follows for a suspected question from the support of its premise, and the best."""
        evidence = np.array([suspicion.falsity, support, best])
        log_odds = evidence @ np.array(self.weights) + self.bias
        probability = float(self.calibration(np.array([log_odds]))[0])
        if probability < self.threshold:
            return Detection(False, probability)
        return replace(suspicion.detection, probability=probability)

    def save(self, folder: str | Path) -> Path:
        """Write the probes' files and ``support.json`` into a directory; returns it."""
        content = {
            "format": _FORMAT,
            "weights": list(self.weights),
            **{name: getattr(self, name) for name in _NUMBERS},
            "calibration": self.calibration.to_dict(),
            "training": self.training,
        }
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error
        write_json(folder / SUPPORT, content)
        return self.probes.write(folder)  # its settings are the last file: see `has_detector`

    @classmethod
    def load(cls, folder: str | Path, *, model: HookedModel | None = None) -> "SupportDetector":
        """Read what ``save`` wrote; with ``model``, only if it was trained on that model.

        Raises UserError for a directory without one, damaged files, or another model's.
        """
        folder = Path(folder)
        if not (folder / SUPPORT).is_file():
            raise UserError(f"there is no support test in {folder}: it has no {SUPPORT}")
        detector = PremiseDetector.load(folder, model=model)
        try:
            content = read_json_object(folder / SUPPORT, advice="it is cut short or altered")
            check_shape(content, _SHAPE, SUPPORT, advice="it is cut short or altered")
            if content["format"] != _FORMAT:
                raise UserError(f"its test has format {content['format']}, not {_FORMAT}")
            found = cls(
                detector,
                weights=tuple(map(float, content["weights"])),
                calibration=Calibration.from_dict(content["calibration"]),
                training=content["training"],
                **{name: float(content[name]) for name in _NUMBERS},
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
            f"Probes, and a test of support, of model {self.fingerprint[:12]}; tests questions "
            f"from falsity {self.floor:.2f} on, fires from probability {self.threshold:.2f} on."
        )
        rows = [(name, str(value)) for name, value in self.training.items()]
        return Shown(words, (pd.DataFrame(rows, columns=["training", "value"]),) if rows else ())


def tested_rows(suspicions: Sequence[Suspicion]) -> list[int]:
    """The places of the questions that are to be tested."""
    return [row for row, suspicion in enumerate(suspicions) if suspicion.pair is not None]


def measured(
    suspicions: Sequence[Suspicion],
    asked: Sequence[AskedQuestion],
    scores: Sequence[TokenScores],
    *,
    read: ReadContrast,
) -> dict[int, tuple[float, float]]:
    """Support and best support in each question that is to be tested, by its place."""
    rows = tested_rows(suspicions)
    pairs = [pair for suspicion in suspicions if (pair := suspicion.pair) is not None]
    tested = [asked[row] for row in rows]
    values = supports([scores[row] for row in rows], tested, pairs, read(tested, pairs)).tolist()
    return {row: (support, best) for row, (support, best) in zip(rows, values, strict=True)}


AnyDetector = PremiseDetector | SupportDetector
"""What is trained and kept."""


def load_detector(folder: str | Path, *, model: HookedModel | None = None) -> AnyDetector:
    """The detector of a directory, of whichever kind it is. Raises UserError as their ``load``."""
    if (Path(folder) / SUPPORT).is_file():
        return SupportDetector.load(folder, model=model)
    if (Path(folder) / _OLDER).is_file():
        raise UserError(f"the detector in {folder} is of an earlier version: train it again")
    return PremiseDetector.load(folder, model=model)
