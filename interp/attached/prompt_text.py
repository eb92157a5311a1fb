"""The text of a prompt of which only the token ids are known, and the question in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from interp.errors import UserError
from interp.forward.batch import Span
from interp.models import render_chat
from interp.models.spans import token_span, tokenize_with_offsets
from probes.detector.questions import AskedQuestion, located_question

_STAND_IN, _SYSTEM = "qzquestionqz", "qzsystemqz"
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
        ends = [len(_decode(tokenizer, ids[:end]).rstrip(_HALF)) for end in range(len(ids) + 1)]
        return cls(tuple(ids), text, tuple(pairwise(ends)))

    def last_mention(self, words: str) -> Span:
        """The tokens of the last occurrence of some words. Raises UserError if there is none."""
        start = self.text.rfind(words) if words else -1
        if start < 0:
            raise UserError(f"{words!r} is not found in the prompt {self.text!r}")
        return token_span(self.offsets, self.text, (start, start + len(words)))


@dataclass(frozen=True)
class QuestionFrame:
    """What a chat template writes before a user's last question and behind it."""

    tokenizer: Any

    @cached_property
    def around(self) -> tuple[str, str]:
        """The last words before a question, and the first line behind it."""
        rendered = render_chat(self.tokenizer, _STAND_IN)
        before, _, after = rendered.text.partition(_STAND_IN)
        found = re.match(r"\s*[^\n]*", after)
        return self._header(before), found[0] if found else ""

    def _header(self, before: str) -> str:
        """What stands before a question with a system prompt and without one."""
        try:
            other = render_chat(self.tokenizer, _STAND_IN, system=_SYSTEM)
        except UserError:  # the template takes no system prompt
            return before
        with_system = other.text.partition(_STAND_IN)[0]
        shared = 0
        while before[len(before) - shared - 1 :] == with_system[len(with_system) - shared - 1 :]:
            shared += 1
            if shared == min(len(before), len(with_system)):
                break
        header = before[len(before) - shared :]
        return header if header.strip() else before

    @cached_property
    def opening(self) -> str:
        """All that stands behind a question, up to where its answer begins."""
        return render_chat(self.tokenizer, _STAND_IN).text.partition(_STAND_IN)[2]

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
        start = prompt.text.rfind(header) + len(header)
        end = prompt.text.find(behind, start) if behind.strip() else len(prompt.text)
        if start < len(header) or end < 0 or not prompt.text[start:end].strip():
            return None
        return start, end


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
