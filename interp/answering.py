"""``generate``: answer a raw question, with heads constrained at the words that are named."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from interp.errors import UserError
from interp.generation import MAX_NEW_TOKENS, generate_tokens
from interp.heads.headset import Head, HeadSet, Site
from interp.interventions.constrain import constrain
from interp.interventions.constraint import Constraint, Mode
from interp.models import render_chat
from interp.premises.encode import token_span, tokenize


def generate(
    model: Any,
    question: str,
    *,
    heads: HeadSet | Iterable[Head] | Constraint = (),
    false_object: str | None = None,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """The model's greedy answer to a question.

    Args:
        heads: constrained at every token of ``false_object``; none by default.
        false_object: the words of the question that may be false; needed with ``heads``. Where they
            occur twice, the last occurrence is meant.

    Raises:
        UserError: the question is empty, or does not hold ``false_object``.
    """
    rendered = render_chat(model.tokenizer, question, system=system)
    encoding = tokenize(model.tokenizer, rendered)
    context: Any = nullcontext()
    constraint = isinstance(heads, Constraint)
    chosen = heads if constraint or isinstance(heads, HeadSet) else tuple(heads)
    if constraint or len(chosen):  # type: ignore[arg-type]
        if not false_object:
            raise UserError("say which words may be false: false_object='Germany', say")
        start = question.rfind(false_object)
        if start < 0:
            raise UserError(f"{false_object!r} is not found in the question {question!r}")
        start += rendered.question_start
        end = start + len(false_object)
        span = token_span(encoding["offset_mapping"], rendered.text, start, end)
        context = constrain(
            model, chosen, at=[span], site=None if constraint else site, mode=mode, factor=factor
        )
    with context:
        answers = generate_tokens(
            model, [encoding["input_ids"]], max_new_tokens=max_new_tokens, progress=False
        )
    return answers[0]
