"""More words for the same premises: each fact stated inside sentences that any relation has.

A probe that has seen a premise in two questions only learns these questions' words along with its
falsity, and says less of a third. What is stated here is the relation's own cloze, completed; the
frames around it take it for granted, as a question with a premise does. They are fitted on and
never scored: which threshold holds is a matter of questions.
"""

import re
from dataclasses import replace

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
    templates = tuple(
        Template(NAME.format(number=number), _inserted(frame, statement))
        for number, frame in enumerate(FRAMES, start=1)
    )
    relation = replace(
        premises.relation,
        templates=templates,
        search_templates=tuple(one.name for one in templates[:1]),
    )
    return replace(premises, relation=relation, templates=relation.template_names)


def _inserted(frame: str, statement: str) -> str:
    """The frame with the statement, capital at the sentence's beginning if no slot stands there."""
    if frame.startswith("{statement}"):
        statement = statement[:1].upper() + statement[1:]
    return frame.replace("{statement}", statement)
