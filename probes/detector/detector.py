"""``PremiseDetector``: detect a false premise in a raw question, and locate its words.

The question is put into the chat format and run once. Linear probes read every token of it after
some middle layers (see `probes.detector.span` and `probes.detector.pair`), and the model's
predictions tell how much it expected each token; `probes.detector.evidence` combines them into
log-odds of falsity. The question's score is the highest of any token. A calibration turns it into a
probability, and the detector fires from a threshold on, which was chosen on held-out folds.

Detectors of format 1 read one layer and no predictions, and those of format 2 have no entity probe;
they load and detect as before.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.display import Shown
from interp.errors import UserError
from interp.files.documents import write_json
from interp.files.shape import Maybe, check_shape
from interp.files.tensor_file import read_tensor_file, write_tensor_file
from interp.files.tensors import check_tensors
from interp.files.text import read_json_object
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from probes.activation_reader import DEFAULT_BATCH_TOKENS, read_activations
from probes.detector.calibration import CALIBRATION_SHAPE, Calibration
from probes.detector.detections import Detection
from probes.detector.evidence import COMBINATION_SHAPE, Combination, token_evidence
from probes.detector.questions import AskedQuestion
from probes.detector.scored import ScoredChunk, TokenScores
from probes.detector.span import false_words
from probes.detector.trained import TrainedDetector
from probes.linear import check_fitted_on

logger = logging.getLogger(__name__)

WEIGHTS, SETTINGS = "detector.safetensors", "detector.json"
SUPPORT = "support.json"
"""The file of the test of a detector's suspicions, see `probes.detector.support_detector`."""
DETECTOR_FOLDER = Path("detector")
"""The folder of a run's detector."""
_PLAIN_FORMAT, _COMBINED_FORMAT, _FORMAT = 1, 2, 3
_SETTINGS = ("fingerprint", "layer", "threshold", "calibration", "training", "prompting")
_SHAPE = {
    **{"format": int, "fingerprint": str, "layer": int, "threshold": float, "training": dict},
    "calibration": CALIBRATION_SHAPE,
    "prompting": Maybe(str),
}
_COMBINED_SHAPE = {**_SHAPE, "layers": [int], "combination": COMBINATION_SHAPE}


@dataclass(frozen=True, eq=False)
class PremiseDetector(TrainedDetector):
    """Probes on the residual stream, a calibration, and a threshold.

    Attributes:
        weight: Float[probe d_model]: the falsity probe of each layer, then the mention probes, then
            the entity probes, which files of older versions do not have.
        bias: the log-odds of each kind of probe at the origin of the raw activations.
        layer: the highest block after which they read (`resid_post`), counted from zero.
        calibration: from a question's score to a probability.
        threshold: the probability from which the detector fires.
        fingerprint: of the model that it belongs to.
        training: its training data, and its scores on held-out folds.
        prompting: fingerprint of the tokenizer and chat template that it was trained with; None in
            files of older versions, which do not hold it.
        layers: the blocks after which they read, ascending; a probe's log-odds are the mean over
            them. By default ``layer`` alone.
        combination: of the probes' log-odds and the model's predictions, to the log-odds of
            falsity. None for the falsity probe alone, as in files of format 1.
    """

    weight: Float[Tensor, "probe d_model"] = field(repr=False)
    bias: tuple[float, ...]
    layer: int
    calibration: Calibration
    threshold: float
    fingerprint: str
    training: dict[str, Any] = field(default_factory=dict, repr=False)
    prompting: str | None = None
    layers: tuple[int, ...] = ()
    combination: Combination | None = None

    def __post_init__(self) -> None:
        layers = self.read_layers
        if min(layers) < 0:
            raise UserError(f"layers are counted from zero, got {min(layers)}")
        if list(layers) != sorted(set(layers)) or layers[-1] != self.layer:
            raise UserError(f"layers ascend up to layer {self.layer}, got {layers}")
        if self.combination is None and (len(layers) > 1 or len(self.bias) == 3):
            raise UserError("a detector of several layers or three probes needs a combination")
        if len(self.bias) not in (2, 3) or len(self.weight) != len(self.bias) * len(layers):
            raise UserError(
                f"{len(layers)} layers and {len(self.bias)} biases but weights "
                f"{tuple(self.weight.shape)}"
            )
        if not 0 <= self.threshold <= 1:
            raise UserError(f"a threshold is a probability, 0 to 1, not {self.threshold}")
        numbers = torch.tensor(self.bias, dtype=torch.float64)
        if not bool(torch.isfinite(self.weight).all() and torch.isfinite(numbers).all()):
            raise UserError("a detector's weights must be finite")

    @property
    def read_layers(self) -> tuple[int, ...]:
        """The layers after which it reads, ascending: ``layers``, or else ``layer`` alone."""
        return self.layers or (self.layer,)

    def check_model(self, model: HookedModel) -> None:
        """Raise UserError for another model, tokenizer or chat template than it was fitted with."""
        check_fitted_on(
            model, "the detector", fingerprint=self.fingerprint, prompting=self.prompting
        )

    def detect_asked(
        self,
        model: HookedModel,
        asked: Sequence[AskedQuestion],
        *,
        progress: bool = True,
        on_chunk: Callable[[ScoredChunk], object] | None = None,
    ) -> tuple[Detection, ...]:
        """One detection a question whose prompt is already made; see `TrainedDetector`."""
        keep = on_chunk is not None and self.uses_predictions
        found: dict[int, Detection] = {}
        for chunk in self.read(model, asked, keys_values=keep, progress=progress):
            questions = (asked[index] for index in chunk.prompts)
            found |= dict(
                zip(chunk.prompts, map(self.decide, questions, chunk.scores), strict=True)
            )
            if on_chunk is not None:
                on_chunk(chunk)
        return tuple(found[index] for index in range(len(asked)))

    @property
    def uses_predictions(self) -> bool:
        """Whether all blocks run, as it weighs what the model expected."""
        return self.combination is not None and self.combination.uses_predictions

    def token_scores(
        self,
        model: HookedModel,
        asked: Sequence[AskedQuestion],
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        progress: bool = True,
    ) -> list[TokenScores]:
        """The log-odds of falsity and mention at every token of each question."""
        found: dict[int, TokenScores] = {}
        for chunk in self.read(model, asked, batch_tokens=batch_tokens, progress=progress):
            found |= dict(zip(chunk.prompts, chunk.scores, strict=True))
        return [found[index] for index in range(len(asked))]

    def read(
        self,
        model: HookedModel,
        asked: Sequence[AskedQuestion],
        *,
        keys_values: bool = False,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        progress: bool = True,
    ) -> Iterator[ScoredChunk]:
        """The scores of the questions in chunks; if asked for, with keys and values of the pass."""
        if not asked:
            return
        prompts = [question.to_read for question in asked]
        for chunk in read_activations(
            model,
            prompts,
            layers=self.read_layers,
            predictions=self.uses_predictions,
            keys_values=keys_values,
            batch_tokens=batch_tokens,
            progress=progress,
        ):
            sizes = [len(prompts[index].positions) for index in chunk.prompts]
            combined = self.combined(chunk.values["resid_post"], chunk.predictions, sizes)
            scores = TokenScores.of_questions(combined, chunk.predictions, sizes)
            yield ScoredChunk(chunk.prompts, tuple(scores), chunk.keys_values)

    def combined(
        self,
        activations: Float[Tensor, "token layer d_model"],
        predictions: Float[Tensor, "token 3"] | None,
        sizes: Sequence[int],
    ) -> Float[Tensor, "token probe"]:
        """The log-odds of falsity, mention and entity at the tokens of questions of these sizes.

        Args:
            activations: after the blocks ``read_layers``.
            predictions: see `probes.activation_reader.PREDICTIONS`; needed only if the combination
                uses them.
        """
        bias = torch.tensor(self.bias, dtype=torch.float64)
        weight = self.weight.double()
        n_layers = len(self.read_layers)
        scores = sum(
            activations[:, index].double() @ weight[index::n_layers].T for index in range(n_layers)
        )
        scores = torch.as_tensor(scores) / n_layers + bias
        if self.combination is None:
            return scores
        numbers = None if predictions is None else predictions.numpy()
        falsity = self.combination(token_evidence(scores[:, :2].numpy(), numbers, sizes))
        return torch.cat([torch.from_numpy(falsity)[:, None], scores[:, 1:]], dim=1)

    def decide(self, asked: AskedQuestion, scores: TokenScores) -> Detection:
        """The detection that follows from the scores of a question's tokens."""
        probability = float(self.calibration(np.array([scores.question]))[0])
        fires = probability >= self.threshold
        chars = false_words(asked, scores.falsity, scores.mention) if fires else None
        if chars is None:  # below the threshold, or punctuation only
            return Detection(False, probability)
        return Detection(True, probability, chars, asked.tokens_at(chars))

    def save(self, folder: str | Path) -> Path:
        """Write `detector.safetensors` and `detector.json` into a directory; returns it.

        The test of other probes that was saved there is removed. Raises UserError if they cannot be
        written.
        """
        try:
            (Path(folder) / SUPPORT).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error
        return self.write(Path(folder))

    def write(self, folder: Path) -> Path:
        """As ``save``, beside a test of these probes."""
        content = {"format": _PLAIN_FORMAT, **{name: getattr(self, name) for name in _SETTINGS}}
        content["calibration"] = self.calibration.to_dict()
        if self.combination is not None:
            content["format"] = _FORMAT if len(self.bias) == 3 else _COMBINED_FORMAT
            content["layers"] = list(self.read_layers)
            content["combination"] = self.combination.to_dict()
        tensors = {"weight": self.weight, "bias": torch.tensor(self.bias, dtype=torch.float64)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error
        write_tensor_file(folder / WEIGHTS, tensors, {})
        write_json(folder / SETTINGS, content)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, model: HookedModel | None = None) -> "PremiseDetector":
        """Read what ``save`` wrote; with ``model``, only if it was trained on that model.

        Raises UserError for a directory without a detector, damaged files, or another model's.
        """
        folder = Path(folder)
        for name in (WEIGHTS, SETTINGS):
            if not (folder / name).is_file():
                raise UserError(f"there is no detector in {folder}: it has no {name}")
        try:
            advice = "it is cut short or altered"
            content = read_json_object(folder / SETTINGS, advice=advice)
            combined_formats = dict.fromkeys((_COMBINED_FORMAT, _FORMAT), _COMBINED_SHAPE)
            shapes = {_PLAIN_FORMAT: _SHAPE, **combined_formats}
            check_shape(content, _SHAPE, SETTINGS, advice=advice)
            if content["format"] not in shapes:
                raise UserError(f"format {content['format']}")
            check_shape(content, shapes[content["format"]], SETTINGS, advice=advice)
            combined: dict[str, Any] = {}
            if content["format"] != _PLAIN_FORMAT:
                combined["layers"] = tuple(content["layers"])
                combined["combination"] = Combination.from_dict(content["combination"])
            tensors, _ = read_tensor_file(folder / WEIGHTS)
            check_tensors(tensors, weight=2, bias=1)
            if len(tensors["bias"]) != (3 if content["format"] == _FORMAT else 2):
                raise UserError(f"biases of shape {tuple(tensors['bias'].shape)}")
            detector = cls(
                tensors["weight"],
                tuple(tensors["bias"].tolist()),
                calibration=Calibration.from_dict(content["calibration"]),
                threshold=float(content["threshold"]),
                prompting=content.get("prompting"),
                **{key: content[key] for key in ("layer", "fingerprint", "training")},
                **combined,
            )
        except UserError as error:
            raise UserError(
                f"the detector in {folder} is damaged ({error}): train it again"
            ) from error
        if model is not None:
            detector.check_model(model)
            if detector.prompting is None:
                logger.warning(
                    "the detector in %s is of an older version, which does not name tokenizer and "
                    "chat template: this model's are assumed",
                    folder,
                )
        return detector

    def _shown(self) -> Shown:
        words = (
            f"Finds false premises after layer {', '.join(map(str, self.read_layers))} of model "
            f"{self.fingerprint[:12]}; "
            f"fires from probability {self.threshold:.2f} on."
        )
        rows = [(name, str(value)) for name, value in self.training.items()]
        return Shown(words, (pd.DataFrame(rows, columns=["training", "value"]),) if rows else ())


def has_detector(run: Path) -> bool:
    """Whether a run holds a complete detector."""
    return (run / DETECTOR_FOLDER / SETTINGS).is_file()  # its last file to be written
