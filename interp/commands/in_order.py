"""Questions in order, of which one that is at fault does not stop the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from interp.errors import UserError
from interp.premises.question_list import RawQuestion

Result = TypeVar("Result")


@dataclass(frozen=True)
class Unasked:
    """A question, or a line, that could not be asked, and why."""

    line: int
    question: str
    error: str

    @property
    def sentence(self) -> str:
        """The error, with where the question stands."""
        short = self.question[:60] + "…" * (len(self.question) > 60)
        return f"line {self.line}: {self.error}" if self.line else f"{short!r}: {self.error}"

    def to_row(self) -> dict[str, Any]:
        """The values by name."""
        return {"line": self.line, "question": self.question, "error": self.error}


Asking = RawQuestion | Unasked
Outcome = tuple[RawQuestion, Result] | Unasked
Run = Callable[[Sequence[RawQuestion]], Sequence[Result]]


def in_order(
    run: Run[Result], questions: Iterable[Asking], *, at_once: int
) -> Iterator[Outcome[Result]]:
    """The result of each question, in order; ``at_once`` of them run together.

    Where these raise a UserError, each half runs by itself, down to the question that is at fault.
    """
    remaining = iter(questions)
    for part in iter(lambda: list(islice(remaining, at_once)), []):
        sound = [question for question in part if isinstance(question, RawQuestion)]
        done = _together(run, sound)
        yield from (question if isinstance(question, Unasked) else next(done) for question in part)


def _together(run: Run[Result], questions: Sequence[RawQuestion]) -> Iterator[Outcome[Result]]:
    if not questions:
        return
    try:
        results = run(questions)
    except UserError as error:
        if len(questions) == 1:
            yield Unasked(questions[0].line, questions[0].text, str(error))
            return
        half = len(questions) // 2
        yield from _together(run, questions[:half])
        yield from _together(run, questions[half:])
        return
    yield from zip(questions, results, strict=True)


def unasked_sentence(outcomes: Iterable[Outcome[Any]]) -> str:
    """How many could not be asked; nothing if all were."""
    count = sum(isinstance(outcome, Unasked) for outcome in outcomes)
    return f" {count} could not be asked." if count else ""
