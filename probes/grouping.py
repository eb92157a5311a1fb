"""Groups that a fold of cross-validation may not part: what two questions can have in common."""

from collections.abc import Sequence
from typing import Literal, get_args

from interp.checked import checked
from interp.errors import UserError
from interp.premises import Question

Grouping = Literal["subject", "template", "relation"]
"""Held-out folds of other subjects, of other templates, or of other relations."""


@checked
def groups_of(questions: Sequence[Question], by: Grouping = "subject") -> tuple[str, ...]:
    """Each question's group; subjects and templates of different relations are different.

    Raises UserError for an unknown grouping.
    """
    if by not in get_args(Grouping):
        raise UserError(f"unknown grouping {by!r}; known: {', '.join(get_args(Grouping))}")
    if by == "relation":
        return tuple(question.relation for question in questions)
    return tuple(f"{question.relation}/{getattr(question, by)}" for question in questions)
