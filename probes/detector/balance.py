"""Balanced questions: every object is false as often as it is true.

Otherwise a probe could learn which objects are usually false. The false objects are a random
permutation of the true ones that gives no subject an object that is true of it (a random
assignment, found with scipy's solver). In a one-to-one relation each object is then true of one
subject and false of one other. Relations whose false object is a neighbouring year are left as they
are: years almost never occur twice, so they cannot be balanced.
"""

from dataclasses import replace

import numpy as np

from interp.checked import checked
from interp.lazy import optimize
from interp.premises import Premises, Question
from interp.premises.questions import collides as collides

_FORBIDDEN = 1e6


@checked
def balanced_questions(premises: Premises, *, seed: int = 0) -> tuple[Question, ...]:
    """The premises' questions, with a permutation of the true objects as false objects.

    Subjects for which no false object is left are left out, so the balance suffers from few facts
    or from an object that most facts share. Raises UserError for a subject of which every object
    is true.
    """
    if premises.relation.false_object != "another":
        return premises.questions()
    dealt = _deal(premises, seed)
    return tuple(
        replace(question, false_object=dealt[question.subject])
        for question in premises.questions()
        if question.subject in dealt
    )


def _deal(premises: Premises, seed: int) -> dict[str, str]:
    """Subject → false object: a random permutation of the facts' objects without collisions."""
    facts = premises.facts
    objects = [fact.object for fact in facts]
    names = list(dict.fromkeys(objects))
    cost = np.random.default_rng(seed).random((len(facts), len(facts)))
    for row, fact in enumerate(facts):
        bad = {name for name in names if collides(name, fact)}
        cost[row, [name in bad for name in objects]] += _FORBIDDEN
    rows, columns = optimize.linear_sum_assignment(cost)
    return {
        facts[row].subject: objects[column]
        for row, column in zip(rows, columns, strict=True)
        if cost[row, column] < _FORBIDDEN
    }
