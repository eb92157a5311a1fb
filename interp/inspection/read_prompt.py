"""One prompt in tokens, with every token's text and the spans to mark.

Token texts are cut from the prompt by the tokenizer's offsets, so they concatenate to it: leading
whitespace belongs to the token after it. A token that completes no character has an empty text, and
a special token outside the text has its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Span
from interp.interventions.generate import last_mention
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
        start: the first token of the question, after the chat template's preamble.
    """

    rendered: RenderedChat
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: Mapping[str, Span] = field(default_factory=dict)
    start: int = 0


@checked
def read_prompt(
    model: HookedModel,
    prompt: str | FilledQuestion,
    *,
    false_object: str | None = None,
    opening: str = "",
    chat: bool = True,
    system: str | None = None,
) -> ReadPrompt:
    """Tokenize a question as ``interp.generate`` asks it, or any text.

    Args:
        prompt: a question; one of ``Premises.fill`` has its subject and object marked.
        false_object: words of a plain question to mark, at their last occurrence.
        opening: the beginning of the answer, such as the cloze.
        chat: put the question into the model's chat template.
        system: with ``chat``, a system prompt.

    Raises:
        UserError: an empty question, or one that does not hold ``false_object``; ``false_object``
            with a filled question, which has its own; ``system`` without ``chat``.
    """
    check_hooked(model)
    text = prompt.text if isinstance(prompt, FilledQuestion) else prompt
    if chat:
        rendered = render_chat(model.tokenizer, text, opening, system=system)
    elif system is not None:
        raise UserError("a system prompt needs the chat template: leave out chat=False")
    elif not text.strip():
        raise UserError("the prompt is empty: give it at least one word")
    else:
        rendered = RenderedChat(text + opening, 0, len(text), add_special_tokens=True)
    encoding = tokenize(model.tokenizer, rendered)
    offsets, ids = encoding["offset_mapping"], tuple(encoding["input_ids"])
    begin = rendered.question_start
    spans = {
        name: token_span(offsets, rendered.text, (begin + start, begin + end), what=name)
        for name, (start, end) in _pieces(prompt, false_object).items()
    }
    first, _ = token_span(offsets, rendered.text, (begin, begin + len(text)), what="question")
    tokens = token_texts(model.tokenizer, rendered.text, ids=ids, offsets=offsets)
    return ReadPrompt(rendered, ids, tokens, spans, first)


def token_texts(
    tokenizer: Any, text: str, *, ids: tuple[int, ...], offsets: Any
) -> tuple[str, ...]:
    """The text of each token."""
    special, done, pieces = set(tokenizer.all_special_ids), 0, []
    for token, (_, end) in zip(ids, offsets, strict=True):
        piece = text[done : max(done, end)]
        done = max(done, end)
        if not piece and token in special:
            piece = str(tokenizer.convert_ids_to_tokens(token))
        pieces.append(piece)
    return tuple(pieces)


def _pieces(prompt: str | FilledQuestion, false_object: str | None) -> dict[str, Span]:
    """Characters of the question to mark, by name."""
    if isinstance(prompt, FilledQuestion):
        if false_object is not None:
            raise UserError("a filled question has its object marked: leave false_object out")
        return {"subject": prompt.subject, "object": prompt.object}
    if false_object is None:
        return {}
    return {"object": last_mention(prompt, false_object)}
