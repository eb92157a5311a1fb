"""Questions in the words a model was trained to be asked in.

Where the tokenizer has a chat template, the question is one user turn and the text ends where the
assistant would begin; where there is none, it is ``Question: …`` and ``Answer:`` on two lines. The
text an answer begins with (a cloze, or an answer to be scored) follows in either case.

Spans are found by characters on this text, so `render_chat` says where in it the question stands.
"""

from dataclasses import dataclass
from typing import Any

from interp.errors import UserError
from interp.untrusted import one_line

# Stand-ins for the question and the answer, to see where a template puts them. Plain letters, so
# that no template trims, escapes or capitalises them.
_QUESTION_MARK = "qzquestionqz"
_ANSWER_MARK = "qzanswerqz"


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
    tokenizer: Any, question: str, answer: str = "", *, system: str | None = None
) -> RenderedChat:
    """Put `question` into the tokenizer's chat template, or the plain frame if it has none.

    `answer` is what the assistant has said so far, `system` a system prompt (by default what the
    template does without one). Raises UserError if the question is empty, if the template refuses
    the messages, or if the question is not in what it writes.
    """
    if not question.strip():
        raise UserError("the question is empty: give it at least one word")
    for what, text in (("question", question), ("answer", answer), ("system prompt", system or "")):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the {what} holds half of a surrogate pair: no Unicode text"
            ) from error
    if not getattr(tokenizer, "chat_template", None):
        return _plain(question, answer, system)
    prompt = _apply(tokenizer, question, system)
    question_start = _question_start(tokenizer, prompt, question, system)
    if answer:
        prompt += _answer_separator(tokenizer, prompt, question, system)
    return RenderedChat(prompt + answer, question_start, len(prompt), add_special_tokens=False)


def _plain(question: str, answer: str, system: str | None) -> RenderedChat:
    before = f"{system}\n\nQuestion: " if system else "Question: "
    prompt = f"{before}{question}\nAnswer:"
    if answer:
        prompt += " "
    return RenderedChat(prompt + answer, len(before), len(prompt), add_special_tokens=True)


def _apply(tokenizer: Any, question: str, system: str | None, answer: str | None = None) -> str:
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer is None
        )
    except Exception as error:  # a template is a program, which can raise anything
        raise UserError(
            f"the model's chat template refuses the question: {one_line(error)}"
            + ("; leave the system prompt out" if system is not None else "")
        ) from error


def _question_start(tokenizer: Any, prompt: str, question: str, system: str | None) -> int:
    """Where the question begins in `prompt`, which may hold the same words elsewhere too."""
    stripped = question.strip()
    dropped = question.index(stripped)
    before, found, _ = _apply(tokenizer, _QUESTION_MARK, system).partition(_QUESTION_MARK)
    if found:
        for kept, offset in ((question, 0), (stripped, dropped)):
            if prompt.startswith(kept, len(before)) and prompt.startswith(before):
                return len(before) - offset
    # A template that writes another preamble for other words: the last mention is the user's turn.
    position = prompt.rfind(stripped)
    if position < 0:
        raise UserError(
            "the model's chat template does not repeat the question word for word: "
            f"{stripped[:60]!r} is not in what it writes, so nothing can be located in it"
        )
    return position - dropped


def _answer_separator(tokenizer: Any, prompt: str, question: str, system: str | None) -> str:
    """The whitespace that the template puts between the prompt and an answer (usually none)."""
    try:
        whole = _apply(tokenizer, question, system, answer=_ANSWER_MARK)
    except UserError:
        return ""
    if not whole.startswith(prompt) or _ANSWER_MARK not in whole:
        return ""
    between = whole[len(prompt) : whole.index(_ANSWER_MARK, len(prompt))]
    return between if not between.strip() else ""
