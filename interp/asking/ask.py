"""``AskedModel``: a model that answers questions without and with an intervention.

It is a hooked model, or a plain one of transformers to which the intervention is attached. Prompts,
greedy answers and detections are the same functions for both.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.asking.compared import ComparedAnswer
from interp.attached.attach import attach
from interp.attached.places import PlacesOfDetector
from interp.errors import UserError
from interp.forward.batch import Span
from interp.forward.generate import MAX_NEW_TOKENS, check_max_new_tokens, greedy_answers
from interp.interventions.context import constrain
from interp.interventions.gate import Gate, lowest_probability
from interp.interventions.generate import last_mention, one_each
from interp.interventions.intervention import Intervention
from interp.models import RenderedChat, render_chat
from interp.models.hooked_model import HookedModel
from interp.models.versions import is_hooked
from interp.premises.encode import token_span, tokenize
from interp.runs.manifest import check_same_model
from probes.detector.detect import detect
from probes.detector.detections import Detection, Detector
from probes.detector.detector import DETECTOR_FOLDER, has_detector
from probes.detector.support_detector import load_detector

Spans = list[Span | None] | None
Detecting = Callable[[Sequence[str], str | None], Sequence[Detection]]


@dataclass(frozen=True)
class Place:
    """Whether and where an intervention acts in a question; see `ComparedAnswer`.

    ``tokens`` are the words as tokens [start, end) of the unpadded chat prompt.
    """

    fired: bool
    words: Span | None = None
    tokens: Span | None = None
    probability: float | None = None


@dataclass(frozen=True)
class AskedModel:
    """A model with an intervention that acts on demand.

    Attributes:
        hf_model: what generates: a transformers model, or the one in a hooked model.
        under: the intervention, with its gate.
        constrained: makes a context in which the intervention acts at a span of each prompt, and as
            strongly as a number for each says.
        detecting: finds the spans, from questions and a system prompt; None with gate ``oracle``.
    """

    hf_model: Any
    tokenizer: Any
    under: Intervention
    constrained: Callable[[Spans, list[float] | None], AbstractContextManager[Any]]
    detecting: Detecting | None = None

    @classmethod
    def hooked(
        cls, model: HookedModel, under: Intervention, *, run: Path | None, detector: Detector | None
    ) -> "AskedModel":
        """A hooked model; ``run`` is where the intervention comes from, if from a run."""
        if run is not None:
            check_same_model(run, model)
        under.check(model)
        if detector is None and run is not None and has_detector(run) and under.gate != "oracle":
            detector = load_detector(run / DETECTOR_FOLDER, model=model)

        def constrained(at: Spans, strengths: list[float] | None) -> AbstractContextManager[Any]:
            return constrain(model, under, at=at, strengths=strengths)

        return cls(
            model.original_model,
            model.tokenizer,
            under,
            constrained,
            None if under.gate == "oracle" else _detecting(model, detector, under.gate),
        )

    @classmethod
    def plain(
        cls,
        hf_model: Any,
        tokenizer: Any,
        under: Intervention,
        *,
        run: Path | None,
        detector: Detector | None,
    ) -> "AskedModel":
        """A transformers model, to which the intervention is attached while it acts."""
        what = under if run is None else run  # of a run, the model is compared with the run's
        if under.gate == "soft":
            raise UserError("gate 'soft' is for a hooked model: use gate 'probe' or 'oracle'")
        if under.gate == "oracle":
            attach(hf_model, tokenizer, what, at=[None], detector=detector).detach()
            detecting = None
        else:
            attached = attach(hf_model, tokenizer, what, gate=under.gate, detector=detector)
            attached.detach()
            assert isinstance(attached.find, PlacesOfDetector)
            detecting = _detecting(attached.find.model, attached.find.detector, under.gate)

        def constrained(at: Spans, strengths: list[float] | None) -> AbstractContextManager[Any]:
            return attach(hf_model, tokenizer, under, gate="oracle", at=at)

        return cls(hf_model, tokenizer, under, constrained, detecting)

    def compare(
        self,
        questions: Sequence[str],
        *,
        false_object: Any = None,
        system: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        progress: bool = False,
    ) -> tuple[ComparedAnswer, ...]:
        """The answers to each question; a question on which nothing acts is answered once.

        Args:
            false_object: with gate ``oracle``, the words that may be false; or a list with the
                words of each question or their characters [start, end), None to leave it alone.

        Raises UserError for an empty question, one without its ``false_object``, or one beyond the
        model's positions.
        """
        check_max_new_tokens(max_new_tokens)
        rendered = [render_chat(self.tokenizer, question, system=system) for question in questions]
        encodings = [tokenize(self.tokenizer, prompt) for prompt in rendered]
        if self.detecting is not None:
            if false_object is not None:
                raise UserError(
                    f"gate {self.under.gate!r} finds the false object itself: leave it out"
                )
            found = self.detecting(questions, system)
            places = [_place(detection) for detection in found]
        else:
            if false_object is None and self.under.needs_positions:
                raise UserError(
                    "give the words that may be false (false_object=), or let a detector find them "
                    "(gate='probe')"
                )
            objects = one_each(false_object, len(questions))
            parts = zip(questions, objects, rendered, encodings, strict=True)
            places = [self._told(*part) for part in parts]
        prompts = [encoding["input_ids"] for encoding in encodings]
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": progress}
        baseline, constrained = self._answers(prompts, places, **options)
        return tuple(
            ComparedAnswer(
                question,
                baseline[row],
                constrained.get(row, baseline[row]),
                fired=place.fired,
                words=place.words if place.fired else None,
                probability=place.probability,
            )
            for row, (question, place) in enumerate(zip(questions, places, strict=True))
        )

    def _answers(
        self, prompts: Sequence[Sequence[int]], places: Sequence[Place], **options: Any
    ) -> tuple[dict[int, str], dict[int, str]]:
        """The answers by row: to all prompts without the intervention, to some with it.

        Both answers to a prompt are made in one batch, which takes little longer than either: in
        the first row nothing is constrained. An intervention that acts at every token acts in all
        rows, and is asked by itself.
        """
        free = [(row, False) for row in range(len(prompts))]
        acting = [(row, True) for row, place in enumerate(places) if place.fired]
        answers: dict[bool, dict[int, str]] = {False: {}, True: {}}
        for runs in [free + acting] if self.under.needs_positions else [free, acting]:

            def within(
                chunk: list[int], batch: object, runs: list[tuple[int, bool]] = runs
            ) -> AbstractContextManager[Any]:
                here = [runs[index] for index in chunk]
                if not any(acts for _, acts in here):
                    return nullcontext()
                at = [places[row].tokens if acts else None for row, acts in here]
                strengths = [places[row].probability or 0.0 for row, _ in here]
                return self.constrained(
                    at if self.under.needs_positions else None,
                    strengths if self.under.gate == "soft" else None,
                )

            wanted = [prompts[row] for row, _ in runs]
            texts = greedy_answers(self.hf_model, self.tokenizer, wanted, within=within, **options)
            for (row, acts), text in zip(runs, texts, strict=True):
                answers[acts][row] = text
        return answers[False], answers[True]

    def _told(self, question: str, words: Any, rendered: RenderedChat, encoding: Any) -> Place:
        """The place of words that the caller names."""
        if not self.under.needs_positions:
            return Place(True)
        if words is None:
            return Place(False)
        start, end = words if isinstance(words, tuple) else last_mention(question, words)
        begin = rendered.question_start
        chars = begin + start, begin + end
        tokens = token_span(encoding["offset_mapping"], rendered.text, chars)
        return Place(True, (start, end), tokens)


def asked_model(
    model: Any,
    tokenizer: Any,
    under: Intervention,
    *,
    run: Path | None = None,
    detector: Detector | None = None,
) -> AskedModel:
    """A hooked model (then without ``tokenizer``) or a plain one, and an intervention.

    ``run`` is where the intervention comes from, if from a run. Raises UserError for what `attach`
    or `constrain` refuse, no heads, and a plain model without its tokenizer.
    """
    if not len(under):
        raise UserError("there are no heads to constrain: the answers would be the same")
    if detector is not None and under.gate == "oracle":
        raise UserError("a detector is for gates 'probe' and 'soft': leave false_object out")
    if is_hooked(model):
        if tokenizer is not None:
            raise UserError("a hooked model has its tokenizer: leave tokenizer out")
        return AskedModel.hooked(model, under, run=run, detector=detector)
    if tokenizer is None:
        raise UserError(
            f"{type(model).__name__} is not a hooked model: load one with interp.load_model, or "
            "give the tokenizer of a transformers model too (tokenizer=)"
        )
    return AskedModel.plain(model, tokenizer, under, run=run, detector=detector)


def gate_of(gate: Gate | None, false_object: Any, intervention: Intervention) -> Gate:
    """The gate that is meant: the caller's if words are given, else a detector."""
    if gate is not None:
        return gate
    if false_object is not None or not intervention.needs_positions:
        return "oracle"
    return "soft" if intervention.gate == "soft" else "probe"


def _detecting(model: HookedModel, detector: Detector | None, gate: Gate) -> Detecting:
    def run(questions: Sequence[str], system: str | None) -> Sequence[Detection]:
        least = lowest_probability(gate)
        options: Any = {"system": system, "least": least, "progress": False}
        return detect(model, questions, detector=detector, **options)

    return run


def _place(found: Detection) -> Place:
    return Place(found.fired, found.char_span, found.token_span, found.probability)
