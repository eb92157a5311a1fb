"""The text of a prompt of which only the token ids are known, and the question in it."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from interp.errors import UserError
from interp.forward.batch import Span
from interp.models import render_chat
from interp.models.spans import last_mention, shared_length, token_span, tokenize_with_offsets
from interp.models.templates import TemplateRefusal, apply_template, template_of
from probes.detector.questions import AskedQuestion, located_question

_STAND_IN, _SYSTEM, _EARLIER, _TOOL = "qzquestionqz", "qzsystemqz", "qzearlierqz", "qztoolqz"
_HALF = "\N{REPLACEMENT CHARACTER}"
"""What the first bytes of a character are decoded to."""


@dataclass(frozen=True)
class PromptText:
    """A prompt's text, and the characters of each of its tokens."""

    ids: tuple[int, ...]
    text: str
    offsets: tuple[Span, ...]

    @classmethod
    def of(cls, tokenizer: Any, ids: Sequence[int]) -> "PromptText":
        """Decode a prompt, special tokens included."""
        text = _decode(tokenizer, ids)
        again = tokenize_with_offsets(tokenizer, text, add_special_tokens=False)
        if again["input_ids"] == list(ids):
            return cls(tuple(ids), text, tuple(again["offset_mapping"]))
        # The prompt was put together from pieces: the tokenizer would cut its text otherwise.
        return cls(tuple(ids), text, _characters(tokenizer, ids))

    def last_mention(self, words: str) -> Span:
        """The tokens of the last occurrence of some words. Raises UserError if there is none."""
        chars = last_mention(self.text, words)
        if chars is None:
            raise UserError(f"{words!r} is not found in the prompt {self.text!r}")
        return token_span(self.offsets, self.text, chars)


@dataclass(frozen=True)
class QuestionFrame:
    """What a chat template writes before a user's last question and behind it.

    ``systems`` are the prompts' system prompts, which are told from a question by their text alone
    where a template writes them into the user's turn (Gemma, Mistral).
    """

    tokenizer: Any
    systems: Collection[str] = ()

    @cached_property
    def around(self) -> tuple[str, str]:
        """The last words before a question, and the first line behind it."""
        rendered = render_chat(self.tokenizer, _STAND_IN)
        before, _, after = rendered.text.partition(_STAND_IN)
        found = re.match(r"\s*[^\n]*", after)
        return self._header(before), found[0] if found else ""

    def _header(self, before: str) -> str:
        """What stands before a question, in a first turn and a later one, without a system prompt
        and with one: without what stands at the beginning of a chat only."""
        header = before
        for other in self._other_fronts():
            shared = shared_length(header[::-1], other[::-1])
            if header[len(header) - shared :].strip():
                header = header[len(header) - shared :]
        return header

    def _other_fronts(self) -> Iterator[str]:
        """What stands before a question behind an earlier turn, and behind a system prompt."""
        if template_of(self.tokenizer):
            turns = (("user", _EARLIER), ("assistant", _EARLIER), ("user", _STAND_IN))
            messages = [{"role": role, "content": content} for role, content in turns]
            with suppress(UserError, TemplateRefusal):  # it takes one turn only
                yield apply_template(self.tokenizer, messages, prompt=True).partition(_STAND_IN)[0]
        with suppress(UserError):  # the template takes no system prompt
            rendered = render_chat(self.tokenizer, _STAND_IN, system=_SYSTEM)
            yield rendered.text.partition(_STAND_IN)[0]

    @cached_property
    def opening(self) -> str:
        """All that stands behind a question, up to where its answer begins."""
        return render_chat(self.tokenizer, _STAND_IN).text.partition(_STAND_IN)[2]

    @cached_property
    def before_tool(self) -> str:
        """What begins a tool's answer that the template makes a user's turn; else nothing."""
        if not template_of(self.tokenizer):
            return ""
        called = {"function": {"name": _TOOL, "arguments": {}}, "type": "function"}
        messages = [
            {"role": "user", "content": _EARLIER},
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "name": _TOOL, "content": _STAND_IN},
        ]
        try:
            text = apply_template(self.tokenizer, messages, prompt=True)
        except (UserError, TemplateRefusal):  # it knows no tools
            return ""
        before, found, _ = text.partition(_STAND_IN)
        header = self.around[0]
        _, begins, marked = before.rpartition(header)
        return header + marked if found and begins and marked.strip() else ""

    def question_in(self, prompt: PromptText) -> AskedQuestion | None:
        """The last question of a prompt, as a detector reads it; None if there is none."""
        found = self._chars(prompt)
        if found is None:
            return None
        start, end = found
        return located_question(
            prompt.text[start:end], prompt.text, prompt.ids, offsets=prompt.offsets, begin=start
        )

    def before_answer(self, prompt: PromptText) -> tuple[int, ...]:
        """The prompt's tokens up to where the answer begins, without what is put in its mouth.

        All of them where the prompt has no question, or ends before.
        """
        found = self._chars(prompt)
        if found is None or not prompt.text.startswith(self.opening, found[1]):
            return prompt.ids
        end = found[1] + len(self.opening)
        return tuple(
            token
            for token, (_, last) in zip(prompt.ids, prompt.offsets, strict=True)
            if last <= end
        )

    def _chars(self, prompt: PromptText) -> Span | None:
        """The characters of a prompt's last question."""
        header, behind = self.around
        at = prompt.text.rfind(header)
        while at >= 0 and self.before_tool and prompt.text.startswith(self.before_tool, at):
            at = prompt.text.rfind(header, 0, at)
        start = at + len(header)
        end = prompt.text.find(behind, start) if behind.strip() else len(prompt.text)
        if at < 0 or end < 0 or not prompt.text[start:end].strip():
            return None
        return self._behind_system(prompt.text, start, end), end

    def _behind_system(self, text: str, start: int, end: int) -> int:
        """Where a question begins behind the system prompt, if that stands in its turn."""
        begin = start + len(text[start:end]) - len(text[start:end].lstrip())
        for system in sorted((system.strip() for system in self.systems), key=len, reverse=True):
            rest = text[begin + len(system) : end]
            if system and text.startswith(system, begin) and rest.strip():
                return begin + len(system) + len(rest) - len(rest.lstrip())
        return start


def _characters(tokenizer: Any, ids: Sequence[int]) -> tuple[Span, ...]:
    """The characters of each token, by decoding more and more of them.

    A token with some bytes of a character has the whole of it, as in a tokenizer's own offsets.
    """
    begun = [_decode(tokenizer, ids[:end]) for end in range(len(ids) + 1)]
    whole = [len(text.rstrip(_HALF)) for text in begun]
    ends = [end + text.endswith(_HALF) for end, text in zip(whole, begun, strict=True)]
    return tuple(zip(whole[:-1], ends[1:], strict=True))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
