"""How an attached model finds the positions to act at: words, or a detector.

Both know the prompts as token ids only. They decode them, and count tokens in the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from interp.attached.handover import ReadPrompts
from interp.attached.prompt_text import PromptText, QuestionFrame
from interp.errors import UserError
from interp.forward.batch import Span
from interp.forward.transfer import upload
from interp.interventions.gate import Gate, lowest_probability, strengths_of
from interp.interventions.object_positions import copies_of, positions_at
from interp.models.hooked_model import HookedModel
from probes.detector.detect import detect
from probes.detector.detections import Detection, Detector, spans_of
from probes.detector.questions import AskedQuestion
from probes.detector.reading import Reading
from probes.detector.scored import ScoredChunk
from probes.detector.support_detector import AnyDetector

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PlacesOfWords:
    """Finds words in the prompts: the last occurrence in each.

    Attributes:
        words: one text that every prompt holds; or one for each prompt, None to leave it alone.
    """

    tokenizer: Any
    words: str | Sequence[str | None]

    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The positions in these prompts, as `ObjectPositions` gives them."""
        prompts = prompt_ids(tokens, mask)
        of_row: list[str | None]
        if isinstance(self.words, str):
            of_row = [self.words] * len(prompts)
        else:
            copies = copies_of(tokens, len(self.words))
            if not copies:
                raise UserError(
                    f"{len(self.words)} false objects for {len(prompts)} prompts: give one for "
                    "each, or one that all of them hold"
                )
            of_row = [words for words in self.words for _ in range(copies)]
        found: dict[tuple[Ids, str | None], Span | None] = {}
        for prompt in zip(prompts, of_row, strict=True):
            if prompt not in found:
                ids, words = prompt
                text = None if words is None else PromptText.of(self.tokenizer, ids)
                found[prompt] = text and text.last_mention(words or "")
        spans = [found[prompt] for prompt in zip(prompts, of_row, strict=True)]
        return positions_at(spans)(tokens, mask)


@dataclass
class PlacesOfDetector:
    """Reads the last question of each prompt with a detector, in an extra prefill.

    Attributes:
        gate: ``probe``, or ``soft``: as strong as the detector is sure.
        keeps_reading: whether keys and values of the reading are kept, until `take_reading`.
        strength: Float[prompt], of the prompts that it was called for last; None for gate
            ``probe``.
    """

    model: HookedModel
    detector: Detector
    frame: QuestionFrame
    gate: Gate = "probe"
    keeps_reading: bool = False
    strength: Tensor | None = field(default=None, init=False)
    _read: ReadPrompts | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        least = lowest_probability(self.gate)
        if least is not None and isinstance(self.detector, AnyDetector):
            self.detector = replace(self.detector, threshold=least)

    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The positions in these prompts, as `ObjectPositions` gives them."""
        self._read = None
        prompts = prompt_ids(tokens, mask)
        different = list(dict.fromkeys(prompts))  # beams run a prompt several times
        asked = [self._question(number, ids) for number, ids in enumerate(different)]
        chunks: list[ScoredChunk] = []
        found = self._detections(asked, chunks)
        spans = dict(zip(different, spans_of(found), strict=True))
        if self.keeps_reading and len(chunks) == 1 and chunks[0].keys_values:
            row_of = {different[index]: row for row, index in enumerate(chunks[0].prompts)}
            end_of = {
                ids: (spans[ids] or question.span)[1]
                for ids, question in zip(different, asked, strict=True)
            }
            rows = torch.tensor([row_of[ids] for ids in prompts])
            ends = tuple(end_of[ids] for ids in prompts)
            self._read = ReadPrompts(Reading(chunks[0].keys_values, rows), ends)
        strengths = strengths_of(found, self.gate)
        if strengths is not None:
            of_prompt = dict(zip(different, strengths, strict=True))
            each = torch.tensor([of_prompt[ids] for ids in prompts], dtype=torch.float32)
            self.strength = upload(each, tokens.device)
        return positions_at([spans[ids] for ids in prompts])(tokens, mask)

    def take_reading(self) -> ReadPrompts | None:
        """What was read of the prompts that it was called for last, once; None if not kept."""
        read, self._read = self._read, None
        return read

    def _question(self, number: int, ids: Ids) -> AskedQuestion:
        asked = self.frame.question_in(PromptText.of(self.model.tokenizer, ids))
        if asked is None:
            raise UserError(
                f"prompt {number} is no question in the model's chat format, and a detector reads "
                "no other: apply the chat template, or say where with at= or false_object="
            )
        return asked

    def _detections(
        self, asked: Sequence[AskedQuestion], chunks: list[ScoredChunk]
    ) -> list[Detection]:
        """One detection a question; ``chunks`` gets what was read, if that is to be kept."""
        if isinstance(self.detector, AnyDetector):

            def keep(chunk: ScoredChunk) -> None:
                # Of several chunks none is of use: their keys and values are let go.
                several = [replace(each, keys_values=()) for each in (*chunks, chunk)]
                chunks[:] = several if chunks else [chunk]

            seen = keep if self.keeps_reading else None
            return list(
                self.detector.detect_asked(self.model, asked, progress=False, on_chunk=seen)
            )
        questions = [question.text for question in asked]
        found = detect(self.model, questions, detector=self.detector, progress=False)
        # The prompt need not be the one that the detector made of the question: count again.
        return [
            replace(detection, token_span=question.tokens_at(detection.char_span))
            if detection.fired and detection.char_span is not None
            else detection
            for question, detection in zip(asked, found, strict=True)
        ]


def prompt_ids(tokens: Tensor, mask: Tensor) -> list[Ids]:
    """The prompts without their padding."""
    rows = zip(tokens.tolist(), mask.bool().tolist(), strict=True)
    return [tuple(compress(ids, real)) for ids, real in rows]
