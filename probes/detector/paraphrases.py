"""Paraphrases of premises: each fact stated inside sentences that fit any relation.

A probe that has seen a premise in two questions only also learns the words of these questions, and
generalises worse to a third. A paraphrase is the relation's cloze, completed, in a sentence that
presupposes it as a question does. Paraphrases are fitted on and never scored, because the threshold
is for questions.
"""

import re

from interp.premises import Premises
from interp.premises.relation import Template

FRAMES = (
    "{statement}.",
    "Explain why {statement}.",
    "How come {statement}?",
    "{statement}. How did that come about?",
    "I have read that {statement}. What else should I know?",
    "Is there a reason why {statement}?",
)
NAME = "frame-{number}"
_OPENER = re.compile(r"^According to [^,{}]*, ")


def framed(premises: Premises) -> Premises:
    """The same facts, and the same false objects, in the frames."""
    statement = _OPENER.sub("", premises.relation.cloze) + " {object}"
    return premises.rephrased(
        Template(NAME.format(number=number), _inserted(frame, statement))
        for number, frame in enumerate(FRAMES, start=1)
    )


def _inserted(frame: str, statement: str) -> str:
    """The frame with the statement, capitalised where it begins the sentence."""
    if frame.startswith("{statement}"):
        statement = statement[:1].upper() + statement[1:]
    return frame.replace("{statement}", statement)
