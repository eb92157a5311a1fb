"""One question of a task set, the response to train on, and the right answer.

`response` is the text that the model is trained to produce, with worked steps or a whole sentence;
`answer` is the part that is scored: a number, an option, or a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from interp.arguments import of_kind, texts
from interp.errors import UserError
from interp.moelora.data.numbers import parse_number

AnswerKind = Literal["number", "option", "name"]
"""How an answer is found in a text: the last number, an option, or an asserted name."""

RESERVED = ("all", "mean")
"""What tables and metrics call all tasks together."""
OPTION_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("yes", "no"),
    ("true", "false"),
    ("answer1", "answer2", "answer3", "answer4", "answer5"),
    ("solution1", "solution2"),
    ("ending1", "ending2", "ending3", "ending4"),
    ("option1", "option2"),
    ("A", "B", "C", "D", "E"),
)
"""Options that are recognised by the answer alone, when a data set does not list its own."""


@dataclass(frozen=True)
class Example:
    """One question with its right answer.

    Attributes:
        task: the name under which accuracy is reported.
        prompt: the question, as a user would put it.
        answer: what is scored; an option in the case in which the options have it.
        response: what the model learns to say; the answer alone where nothing is given.
        subject: what the question is about. Questions of one subject are never split between
            training and test, and are resampled together; the prompt where nothing is given,
            whatever its white space.
        options: what may be answered, for a question with options.
        also_true: other right answers, for a name.
        false_object: a name that a right answer must not assert.
        kind: how the answer is scored; seen from the answer where nothing is given.

    Raises `UserError` when prompt or answer is empty, or the answer does not fit its kind.
    """

    task: str
    prompt: str
    answer: str
    response: str = ""
    subject: str = ""
    options: tuple[str, ...] = ()
    also_true: tuple[str, ...] = ()
    false_object: str = ""
    kind: AnswerKind | Literal[""] = ""

    def __post_init__(self) -> None:
        for name in ("options", "also_true"):
            object.__setattr__(self, name, texts(name, getattr(self, name)))
        for name in ("task", "prompt", "answer", "subject", "false_object"):
            of_kind(name, getattr(self, name), str)
        for name in ("task", "prompt", "answer"):
            if not getattr(self, name).strip():
                raise UserError(f"{name} is empty")
        if self.task in RESERVED:
            raise UserError(f"a task cannot be called {self.task!r}, as tables call all tasks so")
        for name in ("answer", "subject", "false_object"):
            object.__setattr__(self, name, getattr(self, name).strip())
        for name in ("options", "also_true"):
            object.__setattr__(self, name, tuple(text.strip() for text in getattr(self, name)))
        kind = self.kind or kind_of(self.answer, self.options)
        options, answer = self.options, self.answer
        if kind == "option":
            options = options or family_of(self.answer)
            answer = _among(self.answer, options)
            if answer not in options:
                known = ", ".join(options)
                raise UserError(f"answer {self.answer!r} is none of the options {known}")
        if kind == "number" and parse_number(self.answer) is None:
            raise UserError(f"answer {self.answer!r} is not a number")
        filled = {
            "kind": kind,
            "answer": answer,
            "options": options,
            "response": self.response or self.answer,
            "subject": self.subject or " ".join(self.prompt.split()),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    @property
    def right_names(self) -> tuple[str, ...]:
        """Every name that is a right answer."""
        return (self.answer, *self.also_true)


def kind_of(answer: str, options: Sequence[str] = ()) -> AnswerKind:
    """How an answer of this form is scored."""
    if options or family_of(answer):
        return "option"
    return "name" if parse_number(answer) is None else "number"


def family_of(answer: str) -> tuple[str, ...]:
    """The options that the answer is one of, in whatever case, if it is one of the usual ones."""
    return next((family for family in OPTION_FAMILIES if _among(answer, family) in family), ())


def _among(answer: str, options: Sequence[str]) -> str:
    """The answer as the one option that differs from it in case only, if there is one."""
    if answer in options:
        return answer
    found = [option for option in options if option.casefold() == answer.strip().casefold()]
    return found[0] if len(found) == 1 else answer
