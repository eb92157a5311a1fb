"""Questions in the chat format that a model was trained on.

If the tokenizer has a chat template, the question is one user turn and the text ends where the
assistant would begin; otherwise it is ``Question: …`` and ``Answer:`` on two lines. The beginning
of an answer (a cloze, or an answer to be scored) follows in either case, behind everything that the
template itself writes before an answer (`interp.models.answer_place`).

A template must repeat the question and the system prompt word for word; otherwise they are refused.
Spans are found by characters in this text, so `render_chat` says where the question is in it.
"""

from dataclasses import dataclass
from typing import Any

from interp.errors import UserError
from interp.models.answer_place import Front, ends_in, place_answer, without_end
from interp.models.template_clock import template_now, template_time
from interp.models.templates import TemplateRefusal, apply_template, template_of

# Stand-ins for the question, the answer and the system prompt, to see where a template puts them.
# Plain letters, so that no template trims, escapes or capitalises them.
_QUESTION_MARK = "qzquestionqz"
_ANSWER_MARK = "qzanswerqz"
_SYSTEM_MARK = "qzsystemqz"


@dataclass(frozen=True)
class RenderedChat:
    """A question, and perhaps the beginning of an answer, as text for the tokenizer.

    Attributes:
        text: what to tokenize.
        question_start: character i of the question stands at ``question_start + i`` in `text`
            (whitespace at the question's ends may have been dropped by the template).
        answer_start: where the answer begins, or would begin, in `text`.
        add_special_tokens: what to tokenize with: False after a chat template, which writes the
            special tokens itself.
    """

    text: str
    question_start: int
    answer_start: int
    add_special_tokens: bool


def render_chat(
    tokenizer: Any,
    question: str,
    answer: str = "",
    *,
    system: str | None = None,
    gap: str | None = None,
) -> RenderedChat:
    """Put `question` into the tokenizer's chat template, or the plain frame if it has none.

    Args:
        answer: what the assistant has said so far.
        system: a system prompt; by default what the template does without one.
        gap: what stands before the answer in the assistant's turn, behind what the template
            writes; by default nothing, and a space behind the plain frame's ``Answer:``.

    Raises:
        UserError: an empty question; no text; a template that refuses the messages, that does not
            write question or system prompt as they are, or that never ends.
    """
    for what, text in (("question", question), ("answer", answer), ("system prompt", system or "")):
        check_text(what, text)
    if not question.strip():
        raise UserError("the question is empty: give it at least one word")
    if not template_of(tokenizer):
        return _plain(question, answer, system=system, gap=gap)
    with template_time(template_now()):  # the template is rendered several times
        return _in_template(tokenizer, question, answer, system=system, gap=gap)


def _in_template(
    tokenizer: Any, question: str, answer: str, *, system: str | None, gap: str | None
) -> RenderedChat:
    prompt = _front(tokenizer, question, system)
    if prompt is None:
        raise UserError(
            "the model's chat template does not repeat the question word for word: "
            f"{question.strip()[:60]!r} is not in what it writes, so nothing can be located in it"
        )
    if system and system.strip():
        _check_system(tokenizer, prompt.text, system)
    end = getattr(tokenizer, "eos_token", None)
    if answer or ends_in(prompt, end):
        written = _own_front(tokenizer, question, system)
        prompt = without_end(prompt, written, end)
        if answer:
            without = _without_answer(tokenizer, question, system)
            prompt = prompt.behind_turn(without)
            written = None if written is None else written.behind_turn(without)
            prompt = place_answer(prompt, written, lambda: _unthinking(tokenizer, question, system))
            prompt = prompt.followed_by(gap or "")
    return RenderedChat(
        prompt.text + answer, prompt.start, len(prompt.text), add_special_tokens=False
    )


def text_after_answer(tokenizer: Any) -> str:
    """What a chat template writes behind an answer; empty if it has no place for one."""
    try:
        whole = _apply(tokenizer, "question", None, answer=_ANSWER_MARK)
    except UserError:
        return ""
    return whole.rpartition(_ANSWER_MARK)[2] if _ANSWER_MARK in whole else ""


def _plain(question: str, answer: str, *, system: str | None, gap: str | None) -> RenderedChat:
    before = f"{system}\n\nQuestion: " if system else "Question: "
    prompt = f"{before}{question}\nAnswer:"
    if answer:
        prompt += " " if gap is None else gap
    return RenderedChat(prompt + answer, len(before), len(prompt), add_special_tokens=True)


def _turns(question: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": question}]


def _apply(
    tokenizer: Any,
    question: str,
    system: str | None,
    *,
    answer: str | None = None,
    **variables: Any,
) -> str:
    messages = _turns(question, system)
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        return apply_template(tokenizer, messages, prompt=answer is None, **variables)
    except TemplateRefusal as error:
        advice = "; leave the system prompt out" if system is not None else ""
        message = f"the model's chat template refuses the question: {error}{advice}"
        raise UserError(message) from error


def _front(
    tokenizer: Any, question: str, system: str | None, *, answer: str | None = None
) -> Front | None:
    """What a template writes before an answer; None where question or answer are not in it."""
    texts = []
    for asked in (question, _QUESTION_MARK):
        text = _apply(tokenizer, asked, system, answer=answer)
        if answer is not None:
            text, found, _ = text.partition(answer)
            if not found:
                return None
        texts.append(text)
    text, marked = texts
    start = _question_start(text, marked, question)
    return None if start is None else Front(text, start, question)


def _own_front(tokenizer: Any, question: str, system: str | None) -> Front | None:
    """What the template itself writes before an assistant's answer, if it writes answers."""
    try:
        front = _front(tokenizer, question, system, answer=_ANSWER_MARK)
    except UserError:
        return None
    if front is not None and system and system.strip() not in front.text:
        return None
    return front


def _without_answer(tokenizer: Any, question: str, system: str | None) -> str:
    """The turns so far, with nothing for an answer; empty if the template cannot write that."""
    try:
        return apply_template(tokenizer, _turns(question, system), prompt=False)
    except TemplateRefusal:
        return ""


def _unthinking(tokenizer: Any, question: str, system: str | None) -> str:
    """The prompt for an answer without a thought; empty if the template knows no difference."""
    if "enable_thinking" not in template_of(tokenizer):
        return ""
    return _apply(tokenizer, question, system, enable_thinking=False)


def _question_start(prompt: str, marked: str, question: str) -> int | None:
    """Where the question begins in `prompt`, which may hold the same words elsewhere too."""
    stripped = question.strip()
    dropped = question.index(stripped)
    before, found, _ = marked.partition(_QUESTION_MARK)
    if not found:
        return None
    for kept, offset in ((question, 0), (stripped, dropped)):
        if prompt.startswith(kept, len(before)) and prompt.startswith(before):
            return len(before) - offset
    # A template that writes another preamble for other words: the last mention is the user's turn.
    position = prompt.rfind(stripped)
    return None if position < 0 else position - dropped


def _check_system(tokenizer: Any, prompt: str, system: str) -> None:
    """Raise UserError unless the template writes the system prompt, as it is."""
    dropped = _SYSTEM_MARK not in _apply(tokenizer, _QUESTION_MARK, _SYSTEM_MARK)
    if dropped or system.strip() not in prompt:
        how = "leaves the system prompt out" if dropped else "changes the system prompt's words"
        raise UserError(
            f"the model's chat template {how}: leave system out, or put its words into the question"
        )


def check_text(what: str, text: Any) -> None:
    """Raise UserError unless it is Unicode text."""
    if not isinstance(text, str):
        raise UserError(f"the {what} must be text, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the {what} holds half of a surrogate pair: no Unicode text") from error
