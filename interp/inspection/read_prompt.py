"""One prompt as a model reads it, with every token's text and the spans to mark, to be looked at.

Texts of tokens are cut from the prompt's own text by the tokenizer's offsets, so that put together
they are that text again: whitespace belongs to the token that follows it. A token that completes no
character has an empty text, a special token that stands outside the text has its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.arguments import as_text
from interp.errors import UserError
from interp.forward.batch import Span
from interp.models import RenderedChat, render_chat
from interp.models.hooked_model import HookedModel
from interp.models.spans import token_span
from interp.models.versions import check_hooked
from interp.premises.encode import tokenize
from interp.premises.relation import FilledQuestion


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt in tokens.

    Attributes:
        rendered: the text that was tokenized.
        ids, tokens: id and text of each token.
        spans: by name, the tokens [start, end) of pieces of the question.
        start: the first token of the question; before it stands the chat template's preamble.
    """

    rendered: RenderedChat
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: Mapping[str, Span] = field(default_factory=dict)
    start: int = 0


def read_prompt(
    model: HookedModel,
    prompt: str | FilledQuestion,
    *,
    false_object: str | None = None,
    opening: str = "",
    chat: bool = True,
    system: str | None = None,
) -> ReadPrompt:
    """Tokens of a question as ``interp.generate`` asks it, or of any text.

    Args:
        prompt: a question; one of ``Premises.fill`` has its subject and object marked.
        false_object: words of a plain question to mark; where they occur twice, the last time.
        opening: what the answer begins with, the cloze for example.
        chat: put the question into the model's chat template; otherwise it is read as it is.
        system: with ``chat``, a system prompt.

    Raises:
        UserError: an empty question, or one that does not hold ``false_object``; ``false_object``
            beside a filled question, which has its own; ``system`` without ``chat``.
    """
    check_hooked(model)
    text = prompt.text if isinstance(prompt, FilledQuestion) else as_text("prompt", prompt)
    for what, given in (("false_object", false_object), ("system", system)):
        if given is not None:
            as_text(what, given)
    as_text("opening", opening)
    if chat:
        rendered = render_chat(model.tokenizer, text, opening, system=system)
    else:
        rendered = _as_it_is(text, opening, system)
    encoding = tokenize(model.tokenizer, rendered)
    offsets, ids = encoding["offset_mapping"], tuple(encoding["input_ids"])
    begin = rendered.question_start
    spans = {
        name: token_span(offsets, rendered.text, begin + start, begin + end, name)
        for name, (start, end) in _pieces(prompt, false_object).items()
    }
    whole = (begin, begin + len(text))
    first, _ = token_span(offsets, rendered.text, *whole, "question")
    tokens = token_texts(model.tokenizer, rendered.text, ids, offsets)
    return ReadPrompt(rendered, ids, tokens, spans, first)


def token_texts(tokenizer: Any, text: str, ids: tuple[int, ...], offsets: Any) -> tuple[str, ...]:
    """The text of each token."""
    special, done, pieces = set(tokenizer.all_special_ids), 0, []
    for token, (_, end) in zip(ids, offsets, strict=True):
        piece = text[done : max(done, end)]
        done = max(done, end)
        if not piece and token in special:
            piece = str(tokenizer.convert_ids_to_tokens(token))
        pieces.append(piece)
    return tuple(pieces)


def _as_it_is(text: str, opening: str, system: str | None) -> RenderedChat:
    if system is not None:
        raise UserError("a system prompt needs the chat template: leave out chat=False")
    if not text.strip():
        raise UserError("the prompt is empty: give it at least one word")
    return RenderedChat(text + opening, 0, len(text), add_special_tokens=True)


def _pieces(prompt: str | FilledQuestion, false_object: str | None) -> dict[str, Span]:
    """Characters of the question that are to be marked, by name."""
    if isinstance(prompt, FilledQuestion):
        if false_object is not None:
            raise UserError("a filled question has its object marked: leave false_object out")
        return {"subject": prompt.subject, "object": prompt.object}
    if false_object is None:
        return {}
    start = prompt.rfind(false_object) if false_object else -1
    if start < 0:
        raise UserError(f"{false_object!r} is not found in the question {prompt!r}")
    return {"object": (start, start + len(false_object))}
