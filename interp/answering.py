"""``generate``: answer a raw question under an intervention.

With gate ``oracle`` the caller names the words that may be false. With gate ``probe`` a detector
reads the question first; where it finds no false premise, the answer is the unconstrained one.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from interp.errors import UserError
from interp.generation import MAX_NEW_TOKENS, generate_tokens
from interp.heads.headset import Head, HeadSet, Site
from interp.interventions.constrain import constrain
from interp.interventions.constraint import Constraint, Mode
from interp.interventions.experts import ExpertConstraint
from interp.interventions.gate import Detector, Gate, check_gate, detect
from interp.interventions.intervention import Intervention
from interp.models import RenderedChat, render_chat
from interp.patching.batch import Span
from interp.premises.encode import token_span, tokenize


def generate(
    model: Any,
    question: str,
    *,
    heads: HeadSet | Iterable[Head] | Constraint | ExpertConstraint | Intervention = (),
    false_object: str | None = None,
    gate: Gate | None = None,
    detector: Detector | None = None,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """The model's greedy answer to a question.

    Args:
        heads: constrained at every token of the false object: heads, experts or both, as in
            ``constrain``; none by default.
        false_object: the words of the question that may be false; needed with gate ``oracle``.
            Where they occur twice, the last occurrence is meant.
        gate: who finds the false object: ``oracle`` is the caller, ``probe`` a detector. By default
            the intervention's own, which is ``oracle`` for anything else.
        detector: for gate ``probe``; by default the model's own, ``probes.detector_for(model)``.

    Raises:
        UserError: the question is empty, or does not hold ``false_object``; ``false_object`` with
            gate ``probe``.
    """
    if gate is not None:
        check_gate(gate)
    what = Intervention.of(heads, site, mode, factor, gate=gate)
    rendered = render_chat(model.tokenizer, question, system=system)
    encoding = tokenize(model.tokenizer, rendered)
    context: Any = nullcontext()
    if len(what):
        if what.gate == "probe":
            if false_object is not None:
                raise UserError("gate 'probe' finds the false object itself: leave it out")
            (found,) = detect(model, [question], detector=detector, system=system, progress=False)
            span, acts = found.token_span, found.fired
        else:
            span, acts = None, True
            if what.needs_places:
                span = named_span(question, false_object, rendered, encoding)
        if acts:
            at = [span] if what.needs_places else None
            context = constrain(model, what, at=at)
    with context:
        answers = generate_tokens(
            model, [encoding["input_ids"]], max_new_tokens=max_new_tokens, progress=False
        )
    return answers[0]


def named_span(
    question: str, false_object: str | None, rendered: RenderedChat, encoding: Any
) -> Span:
    """The tokens of the words that may be false."""
    if not false_object:
        raise UserError(
            "say which words may be false (false_object='Germany', say), or let a detector find "
            "them (gate='probe')"
        )
    start = question.rfind(false_object)
    if start < 0:
        raise UserError(f"{false_object!r} is not found in the question {question!r}")
    start += rendered.question_start
    end = start + len(false_object)
    return token_span(encoding["offset_mapping"], rendered.text, start, end)
