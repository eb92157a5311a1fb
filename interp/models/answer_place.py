"""Where in a chat an answer begins.

The prompt for an answer is not always what a template writes before one. Models that think are
asked with an open thought (``<think>``), or with nothing, and their templates write a closed
thought or a channel's name before the answers of the conversation so far. An answer then stands

1. behind what the template writes before an answer, if that continues the prompt;
2. else, if the prompt opens a thought, behind that thought, closed;
3. else behind what the template writes before an answer, if it writes any;
4. else behind the prompt.

In the first and second case the answer continues the prompt that the model is asked with, so that
it can be trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from interp.errors import UserError
from interp.models.spans import shared_length

_TAGS = ("think", "thinking", "thought", "reasoning", "seed:think", "longcat_think")
_THOUGHTS = {
    **{f"<{tag}>": f"</{tag}>" for tag in _TAGS},
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "◁think▷": "◁/think▷",
}


@dataclass(frozen=True)
class Front:
    """What stands before an answer.

    Attributes:
        text: all of it.
        start: where the question begins in it.
        question: the question.
        turn: where the answer's own part begins, if that is known; a thought is opened there only.
    """

    text: str
    start: int
    question: str
    turn: int | None = None

    @property
    def behind_question(self) -> str:
        """What the template writes between question and answer."""
        return self.text[self.start + len(self.question.rstrip()) :]

    @property
    def opened(self) -> str:
        """Where a thought may have been opened: what the template writes for the answer."""
        return self.behind_question if self.turn is None else self.text[self.turn :]

    def behind_turn(self, without: str) -> "Front":
        """The same, told how the text goes on if no answer is asked for."""
        shared = shared_length(self.text, without)
        known = len(self.behind_question) > len(self.text) - shared > 0
        return replace(self, turn=shared) if known else self

    def followed_by(self, text: str) -> "Front":
        """The same with more behind it."""
        return replace(self, text=self.text + text)


def place_answer(prompt: Front, written: Front | None, unthinking: Callable[[], str]) -> Front:
    """What an answer stands behind.

    Args:
        prompt: what the model is asked with.
        written: what the template writes before an answer of the conversation so far; None if it
            writes none.
        unthinking: renders the prompt as the template does for an answer without a thought.
    """
    if written is not None and written.text.startswith(prompt.text):
        return _with_thought_closed(written)
    if written is None or open_thought(prompt.opened):
        closed = _closed_by_template(prompt, unthinking)
        return closed or _with_thought_closed(prompt)
    return _with_thought_closed(written)


def open_thought(text: str) -> str | None:
    """The mark that opens the thought in which a text ends; None if it ends in none."""
    opened = {mark: text.rfind(mark) for mark in _THOUGHTS if mark in text}
    last = max(opened, key=lambda mark: opened[mark], default=None)
    if last is None or _THOUGHTS[last] in text[opened[last] :]:
        return None
    return last


def ends_in(front: Front, end: str | None) -> bool:
    """Whether a prompt ends in the end token."""
    return bool(end) and front.behind_question.rstrip().endswith(str(end))


def without_end(prompt: Front, written: Front | None, end: str | None) -> Front:
    """The prompt without an end token that its template puts behind everything.

    One that the template also writes before an answer ends the user's turn, and stays.
    """
    while ends_in(prompt, end) and not (written and written.text.startswith(prompt.text)):
        prompt = replace(prompt, text=prompt.text[: prompt.text.rindex(str(end))])
    return prompt


def _with_thought_closed(front: Front) -> Front:
    mark = open_thought(front.opened)
    return front if mark is None else front.followed_by(f"\n{_THOUGHTS[mark]}\n\n")


def _closed_by_template(prompt: Front, unthinking: Callable[[], str]) -> Front | None:
    """The prompt for an answer without a thought, if the template has one that goes on from it."""
    try:
        text = unthinking()
    except UserError:
        return None
    front = replace(prompt, text=text)
    goes_on = text.startswith(prompt.text) and len(text) > len(prompt.text)
    return front if goes_on and not open_thought(front.opened) else None
