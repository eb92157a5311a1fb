"""``generate``: answer a raw question, or several, under an intervention.

With gate ``oracle`` the caller names the words that may be false. With gate ``probe`` or ``soft`` a
detector reads the questions first; where it finds no false premise, the answer is the unconstrained
one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from interp.errors import UserError
from interp.forward.batch import Span
from interp.forward.generate import MAX_NEW_TOKENS, check_max_new_tokens, generate_tokens
from interp.heads.headset import Head, HeadSet, Site
from interp.interventions.context import constrain
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, lowest_probability, strengths_of
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.intervention import Intervention
from interp.models import RenderedChat, render_chat, spans
from interp.models.hooked_model import HookedModel
from interp.premises.encode import token_span, tokenize
from probes.detector.detect import detect
from probes.detector.detections import Detector, spans_of

Heads = HeadSet | Iterable[Head] | Constraint | ExpertConstraint | Intervention


def generate(
    model: HookedModel,
    question: str | Iterable[str],
    *,
    heads: Heads = (),
    false_object: str | Sequence[str] | None = None,
    gate: Gate | None = None,
    detector: Detector | None = None,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    decoding_steps: int | None = None,
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str | list[str]:
    """The model's greedy answer to a question; of several questions, a list of answers.

    Args:
        heads: heads, experts or both, as ``constrain`` takes them, constrained at every token of
            the false object; by default none.
        false_object: the words of the question that may be false, for gate ``oracle``; their last
            occurrence is used. For several questions, one for each, or one that all contain.
        gate: who finds the false object: the caller (``oracle``) or a detector (``probe``, or
            ``soft``, as strong as the detector is sure). By default the intervention's own gate.
        detector: for gates ``probe`` and ``soft``; by default ``probes.detector_for(model)``.
        site, mode, factor, decoding_steps: of (layer, head) tuples or a head set; see
            ``interp.interventions.head_constraint``.
        max_new_tokens: the longest answer in tokens; 0 gives empty answers.

    Raises:
        UserError: a question is empty or no text, or does not hold its ``false_object``;
            ``false_object`` with gate ``probe``; a prompt beyond the model's positions.
    """
    max_new_tokens = check_max_new_tokens(max_new_tokens)
    under = Intervention.of(
        heads, site, mode=mode, factor=factor, decoding_steps=decoding_steps, gate=gate
    )
    questions = questions_of(question)
    if not questions:
        return []
    rendered = [render_chat(model.tokenizer, text, system=system) for text in questions]
    encodings = [tokenize(model.tokenizer, prompt) for prompt in rendered]
    acts, spans, strengths = [len(under) > 0] * len(questions), None, None
    if len(under) and under.gate != "oracle":
        if false_object is not None:
            raise UserError(f"gate {under.gate!r} finds the false object itself: leave it out")
        least = lowest_probability(under.gate)
        found = detect(
            model, questions, detector=detector, system=system, least=least, progress=False
        )
        acts, spans = [detection.fired for detection in found], spans_of(found)
        strengths = strengths_of(found, under.gate)
    elif len(under) and under.needs_positions:
        objects = one_each(false_object, len(questions))
        parts = zip(questions, objects, rendered, encodings, strict=True)
        spans = [
            named_span(text, words, prompt, encoding=encoding)
            for text, words, prompt, encoding in parts
        ]
    answers = [""] * len(questions)
    for constrained in (False, True):
        rows = [row for row, acting in enumerate(acts) if acting is constrained]

        def within(chunk: list[int], batch: object, rows: list[int] = rows) -> Any:
            here = [rows[index] for index in chunk]
            at = None if spans is None else [spans[row] for row in here]
            strong = None if strengths is None else [strengths[row] for row in here]
            return constrain(model, under, at=at, strengths=strong)

        texts = generate_tokens(
            model,
            [encodings[row]["input_ids"] for row in rows],
            max_new_tokens=max_new_tokens,
            within=within if constrained else None,
            progress=False,
        )
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
    return answers[0] if isinstance(question, str) else answers


def questions_of(question: Any) -> list[str]:
    """The questions as a list, from one text or several. Raises UserError for anything else."""
    if isinstance(question, str):
        return [question]
    if isinstance(question, Mapping | bytes) or not isinstance(question, Iterable):
        raise UserError(f"a question is a text, or a list of texts, not {type(question).__name__}")
    questions = list(question)
    for number, text in enumerate(questions, start=1):
        if not isinstance(text, str):
            raise UserError(f"question {number} must be text, not {type(text).__name__}")
    return questions


def named_span(
    question: str, false_object: str | None, rendered: RenderedChat, *, encoding: Any
) -> Span:
    """The tokens of the words that may be false."""
    if not false_object:
        raise UserError(
            "give the words that may be false (such as false_object='Germany'), or let a detector "
            "find them (gate='probe')"
        )
    if not isinstance(false_object, str):
        raise UserError(f"false_object must be text, not {type(false_object).__name__}")
    begin = rendered.question_start
    start, end = last_mention(question, false_object)
    return token_span(encoding["offset_mapping"], rendered.text, (begin + start, begin + end))


def last_mention(question: str, words: str) -> Span:
    """The characters of the last mention, whole words first. Raises UserError if there is none."""
    found = spans.last_mention(question, words)
    if found is None:
        raise UserError(f"{words!r} is not found in the question {question!r}")
    return found


def one_each(false_object: Any, count: int) -> list[Any]:
    """The false object of each question."""
    if false_object is None or isinstance(false_object, str):
        return [false_object] * count
    if not isinstance(false_object, Sequence) or isinstance(false_object, bytes):
        raise UserError(
            f"false_object is a text, or a list of texts, not {type(false_object).__name__}"
        )
    if len(false_object) != count:
        raise UserError(
            f"{len(false_object)} false objects for {count} questions: give one for each, or one "
            "that all of them hold"
        )
    return list(false_object)
