"""``generate``: answer a raw question, or several, under an intervention.

With gate ``oracle`` the caller names the words that may be false. With gate ``probe`` a detector
reads the questions first; where it finds no false premise, the answer is the unconstrained one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from interp.errors import UserError
from interp.forward.batch import Span
from interp.forward.generate import MAX_NEW_TOKENS, check_max_new_tokens, generate_tokens
from interp.heads.headset import Head, HeadSet, Site
from interp.interventions.context import constrain
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, check_gate
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.intervention import Intervention
from interp.models import RenderedChat, render_chat
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
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str | list[str]:
    """The model's greedy answer to a question; of several questions, a list of answers.

    Args:
        heads: constrained at every token of the false object: heads, experts or both, as in
            ``constrain``; none by default.
        false_object: the words of the question that may be false; needed with gate ``oracle``.
            Where they occur twice, the last occurrence is meant. Of several questions, one for
            each, or one that all of them hold.
        gate: who finds the false object: ``oracle`` is the caller, ``probe`` a detector. By default
            the intervention's own, which is ``oracle`` for anything else.
        detector: for gate ``probe``; by default the model's own, ``probes.detector_for(model)``.
        max_new_tokens: the longest answer in tokens; 0 gives empty answers.

    Raises:
        UserError: a question is empty or no text, or does not hold its ``false_object``;
            ``false_object`` with gate ``probe``; a prompt beyond the model's positions.
    """
    if gate is not None:
        check_gate(gate)
    max_new_tokens = check_max_new_tokens(max_new_tokens)
    what = Intervention.of(heads, site, mode, factor, gate=gate)
    questions = questions_of(question)
    if not questions:
        return []
    rendered = [render_chat(model.tokenizer, one, system=system) for one in questions]
    encodings = [tokenize(model.tokenizer, one) for one in rendered]
    acts, at = [False] * len(questions), [None] * len(questions)
    if len(what) and what.gate == "probe":
        if false_object is not None:
            raise UserError("gate 'probe' finds the false object itself: leave it out")
        found = detect(model, questions, detector=detector, system=system, progress=False)
        acts, at = [one.fired for one in found], spans_of(found)
    elif len(what):
        acts = [True] * len(questions)
        if what.needs_places:
            objects = one_each(false_object, len(questions))
            asked = zip(questions, objects, rendered, encodings, strict=True)
            at = [named_span(*one) for one in asked]
    answers = [""] * len(questions)
    for constrained in (False, True):
        rows = [row for row, acting in enumerate(acts) if acting is constrained]
        spans = [at[row] for row in rows]

        def within(chunk: list[int], batch: object, spans: list[Any] = spans) -> Any:
            places = [spans[index] for index in chunk] if what.needs_places else None
            return constrain(model, what, at=places)

        said = generate_tokens(
            model,
            [encodings[row]["input_ids"] for row in rows],
            max_new_tokens=max_new_tokens,
            within=within if constrained else None,
            progress=False,
        )
        for row, text in zip(rows, said, strict=True):
            answers[row] = text
    return answers[0] if isinstance(question, str) else answers


def questions_of(question: Any) -> list[str]:
    """The questions that are asked: one text, or several. Raises UserError for anything else."""
    if isinstance(question, str):
        return [question]
    if isinstance(question, Mapping | bytes) or not isinstance(question, Iterable):
        raise UserError(f"a question is a text, or a list of texts, not {type(question).__name__}")
    questions = list(question)
    for number, one in enumerate(questions, start=1):
        if not isinstance(one, str):
            raise UserError(f"question {number} must be text, not {type(one).__name__}")
    return questions


def named_span(
    question: str, false_object: str | None, rendered: RenderedChat, encoding: Any
) -> Span:
    """The tokens of the words that may be false."""
    if not false_object:
        raise UserError(
            "say which words may be false (false_object='Germany', say), or let a detector find "
            "them (gate='probe')"
        )
    if not isinstance(false_object, str):
        raise UserError(f"false_object must be text, not {type(false_object).__name__}")
    start = question.rfind(false_object)
    if start < 0:
        raise UserError(f"{false_object!r} is not found in the question {question!r}")
    start += rendered.question_start
    end = start + len(false_object)
    return token_span(encoding["offset_mapping"], rendered.text, start, end)


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
