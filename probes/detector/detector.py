"""``PremiseDetector``: whether a raw question has a false premise, and which words it is.

The question is put into the chat format and run once, up to the probes' layer. Two linear probes
read every token of the question there (`probes.detector.span` says what each is for). The
question's score is the highest falsity log-odds of any token; a calibration makes it a probability,
and the detector fires from a threshold on, which was chosen on folds that the probes were not
fitted on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.files import Maybe, check_shape, check_tensors, read_json_object
from interp.files.documents import write_json
from interp.files.tensor_file import read_tensor_file, write_tensor_file
from interp.models import fingerprint as fingerprint_of
from interp.models.hooked_model import HookedModel
from interp.models.tokenizer_fingerprint import prompting_fingerprint
from probes.activation_reader import DEFAULT_BATCH_TOKENS, read_activations
from probes.detector.calibration import CALIBRATION_SHAPE, Calibration
from probes.detector.detections import Detection
from probes.detector.questions import AskedQuestion, ask
from probes.detector.span import false_words

logger = logging.getLogger(__name__)

WEIGHTS, SETTINGS = "detector.safetensors", "detector.json"
_FORMAT = 1
_SHAPE = {
    **{"format": int, "fingerprint": str, "layer": int, "threshold": float, "training": dict},
    "calibration": CALIBRATION_SHAPE,
    "prompting": Maybe(str),
}


@dataclass(frozen=True)
class TokenScores:
    """What both probes say of the tokens of a question, in log-odds."""

    falsity: Float[np.ndarray, " token"]
    mention: Float[np.ndarray, " token"]

    @property
    def question(self) -> float:
        """The question's score: the falsest token's."""
        return float(self.falsity.max())


@dataclass(frozen=True, eq=False)
class PremiseDetector(Displayed):
    """Two probes on the residual stream after one block, and when they count.

    Attributes:
        weight: Float[2 d_model], the falsity probe's and the mention probe's.
        bias: their log-odds at the origin of the raw activations.
        layer: the block after which they read (`resid_post`), counted from zero.
        calibration: from a question's score to a probability.
        threshold: the probability from which the detector fires.
        fingerprint: of the model that it belongs to.
        training: what it was trained on, and how well it did on the folds left out.
        prompting: fingerprint of the tokenizer and chat template that it was trained with; None in
            the files of older versions, which did not note it.
    """

    weight: Float[Tensor, "2 d_model"] = field(repr=False)
    bias: tuple[float, float]
    layer: int
    calibration: Calibration
    threshold: float
    fingerprint: str
    training: dict[str, Any] = field(default_factory=dict, repr=False)
    prompting: str | None = None

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise UserError(f"layers are counted from zero, got {self.layer}")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"a threshold is a probability, 0 to 1, not {self.threshold}")
        numbers = torch.tensor(self.bias, dtype=torch.float64)
        if not bool(torch.isfinite(self.weight).all() and torch.isfinite(numbers).all()):
            raise UserError("a detector's weights must be finite")

    def check_model(self, model: HookedModel) -> None:
        """UserError if this detector was trained on another model, tokenizer or chat template."""
        if (found := fingerprint_of(model)) != self.fingerprint:
            raise UserError(
                f"the detector belongs to model {self.fingerprint[:12]}, this is {found[:12]}: "
                "train one on this model (probes.train_detector), or load the model it belongs to"
            )
        if self.prompting not in (None, prompting_fingerprint(model.tokenizer)):
            raise UserError(
                "the detector was trained with another tokenizer or chat template than this "
                "model's: train one with these (probes.train_detector), or load the model as it was"
            )

    def detect(
        self,
        model: HookedModel,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> tuple[Detection, ...]:
        """One detection a question, in order; questions run in batches, up to the probes' layer.

        Raises:
            UserError: a detector of another model or other prompts, or an empty question.
        """
        self.check_model(model)
        asked = [ask(model.tokenizer, question, system=system) for question in questions]
        scores = self.token_scores(model, asked, progress=progress)
        return tuple(self.decide(one, of_one) for one, of_one in zip(asked, scores, strict=True))

    def token_scores(
        self,
        model: HookedModel,
        asked: Sequence[AskedQuestion],
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        progress: bool = True,
    ) -> list[TokenScores]:
        """Both probes' log-odds at every token of each question."""
        if not asked:
            return []
        weight, bias = self.weight.double(), torch.tensor(self.bias, dtype=torch.float64)
        found: list[TokenScores | None] = [None] * len(asked)
        prompts = [one.to_read for one in asked]
        for chunk in read_activations(
            model, prompts, layers=[self.layer], batch_tokens=batch_tokens, progress=progress
        ):
            scores = chunk.values["resid_post"][:, 0].double() @ weight.T + bias
            sizes = [len(prompts[index].positions) for index in chunk.prompts]
            for index, part in zip(chunk.prompts, scores.split(sizes), strict=True):
                found[index] = TokenScores(part[:, 0].numpy(), part[:, 1].numpy())
        return [one for one in found if one is not None]

    def decide(self, asked: AskedQuestion, scores: TokenScores) -> Detection:
        """What the scores of a question's tokens amount to."""
        probability = float(self.calibration(np.array([scores.question]))[0])
        if probability < self.threshold:
            return Detection(False, probability)
        chars = false_words(asked, scores.falsity, scores.mention)
        if chars is None:  # marks only: there is nothing that could be false
            return Detection(False, probability)
        return Detection(True, probability, chars, asked.tokens_at(chars))

    def save(self, folder: str | Path) -> Path:
        """Write `detector.safetensors` and `detector.json` into a directory; returns it.

        Raises UserError if they cannot be written.
        """
        folder = Path(folder)
        content = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "layer": self.layer,
            "threshold": self.threshold,
            "calibration": self.calibration.to_dict(),
            "training": self.training,
            "prompting": self.prompting,
        }
        tensors = {
            "weight": self.weight.detach().cpu().contiguous(),
            "bias": torch.tensor(self.bias, dtype=torch.float64),
        }
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
            content = check_shape(
                read_json_object(folder / SETTINGS, advice="it is cut short or altered"),
                _SHAPE,
                SETTINGS,
                advice="it is cut short or altered",
            )
            if content["format"] != _FORMAT:
                raise UserError(f"format {content['format']}")
            tensors, _ = read_tensor_file(folder / WEIGHTS)
            check_tensors(tensors, weight=2, bias=1)
            if len(tensors["weight"]) != 2 or len(tensors["bias"]) != 2:
                raise UserError(f"weights of shape {tuple(tensors['weight'].shape)}")
            falsity, mention = tensors["bias"].tolist()
            detector = cls(
                weight=tensors["weight"],
                bias=(falsity, mention),
                layer=content["layer"],
                calibration=Calibration.from_dict(content["calibration"]),
                threshold=float(content["threshold"]),
                fingerprint=content["fingerprint"],
                training=content["training"],
                prompting=content.get("prompting"),
            )
        except UserError as error:
            raise UserError(
                f"the detector in {folder} is damaged ({error}): train it again"
            ) from error
        if model is not None:
            detector.check_model(model)
            if detector.prompting is None:
                logger.warning(
                    "the detector in %s is of an older version, which did not note tokenizer and "
                    "chat template: taken to be this model's",
                    folder,
                )
        return detector

    def _shown(self) -> Shown:
        words = (
            f"Finds false premises after layer {self.layer} of model {self.fingerprint[:12]}; "
            f"fires from probability {self.threshold:.2f} on."
        )
        rows = [(name, str(value)) for name, value in self.training.items()]
        return Shown(words, (pd.DataFrame(rows, columns=["training", "value"]),) if rows else ())
