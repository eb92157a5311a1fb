"""Every object is false as often as it is true."""

from collections import Counter

import pytest

from interp.errors import UserError
from interp.premises import load_premises
from probes import balanced_questions, groups_of


@pytest.mark.parametrize("name", ["capitals", "languages"])
def test_objects_are_false_as_often_as_true(name):
    premises = load_premises(name, limit=40)
    questions = balanced_questions(premises, seed=1)
    kept = {question.subject for question in questions}
    false = Counter(question.false_object for question in questions)
    true = Counter(question.true_object for question in questions)
    assert len(questions) == len(kept) * len(premises.templates)
    if len(kept) == 40:
        assert false == true
    assert all(question.false_object not in question.true_names for question in questions)
    alone = {(question.subject, question.false_object) for question in questions}
    assert len(alone) == len(kept)  # one false object a subject, whatever the template


def test_the_deal_depends_on_the_seed_only():
    premises = load_premises("capitals", limit=20)
    assert balanced_questions(premises) == balanced_questions(premises)
    assert balanced_questions(premises) != balanced_questions(premises, seed=1)


def test_a_subject_without_a_false_object_is_left_out():
    """Of English, English and French, two can be dealt the other one's object."""
    premises = load_premises("languages")
    english = [fact for fact in premises.facts if fact.true_names == ("English",)][:2]
    french = [fact for fact in premises.facts if fact.true_names == ("French",)][:1]
    questions = balanced_questions(premises.with_facts([*english, *french]))
    assert len({question.subject for question in questions}) == 2
    with pytest.raises(UserError, match="no false object for"):
        balanced_questions(premises.with_facts(english))


def test_years_keep_their_rule():
    premises = load_premises("films", limit=5)
    assert balanced_questions(premises) == premises.questions()


def test_groups():
    questions = load_premises("capitals", limit=2).questions()
    assert set(groups_of(questions, "relation")) == {"capitals"}
    assert len(set(groups_of(questions))) == 2
    assert len(set(groups_of(questions, "template"))) == 4
    assert groups_of(questions, "subject")[0].startswith("capitals/")
