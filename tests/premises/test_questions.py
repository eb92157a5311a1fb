"""Questions and their false objects."""

from collections import Counter
from typing import Any

import pytest

from interp.errors import UserError
from interp.premises import Fact, Premises, Relation, Template


def relation_of(facts: list[Fact], **changes: Any) -> Relation:
    keywords: dict[str, Any] = {
        "name": "toys",
        "description": "",
        "subject_kind": "child",
        "object_kind": "toy",
        "templates": (
            Template("a", "Why does {subject} like {object}?"),
            Template("b", "Since when is {object} liked by {subject}?"),
        ),
        "search_templates": ("a",),
        "cloze": "{subject} likes",
        "direct": "What does {subject} like?",
        "facts": tuple(facts),
    }
    return Relation(**(keywords | changes))


def premises_of(facts: list[Fact], *, seed: int = 0, **changes: Any) -> Premises:
    relation = relation_of(facts, **changes)
    return Premises(relation, relation.facts, relation.template_names, seed)


def test_every_fact_through_every_template_with_one_false_object():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars", ("autos",))])
    questions = premises.questions()
    assert len(premises) == len(questions) == 4
    assert [(q.subject, q.template) for q in questions] == [
        ("Ann", "a"),
        ("Ann", "b"),
        ("Bob", "a"),
        ("Bob", "b"),
    ]
    assert [q.false_object for q in questions] == ["cars", "cars", "balls", "balls"]
    assert questions[3].true_names == ("cars", "autos")
    assert questions[0].relation == "toys"


def test_the_three_kinds_by_hand():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars")])
    question = premises.questions()[1]
    false = premises.fill(question, "false")
    assert false.text == "Since when is cars liked by Ann?"
    assert (false.object, false.subject) == ((14, 18), (28, 31))
    assert premises.fill(question, "twin").text == "Since when is balls liked by Ann?"
    masked = premises.fill(question, "masked")
    assert masked.text[slice(*masked.object)] == "XXXX"
    assert premises.cloze(question) == "Ann likes"
    assert premises.direct(premises.facts[1]) == "What does Bob like?"


def test_years():
    facts = [Fact("Jaws", "1975"), Fact("Alien", "1979")]
    before = premises_of(facts, false_object="previous_year")
    after = premises_of(facts, false_object="next_year")
    assert [before.false_object(fact) for fact in facts] == ["1974", "1978"]
    assert [after.false_object(fact) for fact in facts] == ["1976", "1980"]


def test_a_year_that_is_also_true_is_no_false_object():
    fact = Fact("Jaws", "1975", ("1974",))
    with pytest.raises(UserError, match="1974 is also true"):
        premises_of([fact], false_object="previous_year").false_object(fact)


def test_false_object_is_never_true_in_any_spelling():
    facts = [
        Fact("Ann", "balls", ("Marbles", "CARS")),
        Fact("Bob", "BALLS"),
        Fact("Cid", "marbles"),
        Fact("Dan", "toy cars"),
        Fact("Eve", "kites"),
        Fact("Dan's kites", "balls"),
    ]
    for seed in range(50):
        premises = premises_of(facts, seed=seed)
        assert premises.false_object(facts[0]) == "kites"
        assert premises.false_object(facts[1]) in {"marbles", "toy cars", "kites"}
        assert premises.false_object(facts[5]) != "kites"  # the subject names them


def test_no_other_object():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "Balls")])
    with pytest.raises(UserError, match="no false object for 'Ann'"):
        premises.questions()


def test_draw_depends_on_neither_order_nor_other_facts():
    facts = [Fact(f"s{i}", f"o{i}") for i in range(30)]
    premises = premises_of(facts)
    drawn = {fact.subject: premises.false_object(fact) for fact in facts}
    turned = premises.with_facts(reversed(facts))
    assert {fact.subject: turned.false_object(fact) for fact in facts} == drawn
    fewer = premises.with_facts(facts[:20])
    still_there = [f for f in facts[:20] if int(drawn[f.subject][1:]) < 20]
    assert len(still_there) > 5
    for fact in still_there:
        assert fewer.false_object(fact) == drawn[fact.subject]
    others = [premises_of(facts, seed=1).false_object(fact) for fact in facts]
    assert others != list(drawn.values())


def test_draw_follows_how_often_an_object_is_true():
    # 1000 facts: 600 balls, 300 cars, 100 kites. A ball's false object is a car 3 times in 4.
    objects = ["balls"] * 600 + ["cars"] * 300 + ["kites"] * 100
    facts = [Fact(f"s{i}", name) for i, name in enumerate(objects)]
    premises = premises_of(facts)
    drawn = Counter(premises.false_object(fact) for fact in facts[:600])
    assert drawn["balls"] == 0
    assert drawn["cars"] / 600 == pytest.approx(0.75, abs=0.06)


def test_parts_of_premises():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars"), Fact("Cid", "kites")])
    assert premises.first(2).subjects == ("Ann", "Bob")
    assert len(premises.with_templates(["b"])) == 3
    assert premises.with_templates(["b"]).questions()[0].false_object == (
        premises.questions()[0].false_object
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda premises: premises.first(0), "first 0 facts"),
        (lambda premises: premises.with_facts([]), "no facts"),
        (lambda premises: premises.with_templates([]), "no templates"),
        (lambda premises: premises.with_templates(["c"]), "no template 'c'; known: a, b"),
        (lambda premises: premises.with_templates(["a", "a"]), "named twice"),
        (lambda premises: premises.with_facts([Fact("A", "x"), Fact("A", "y")]), "occurs twice"),
        (lambda premises: premises.fact("Zoe"), "no fact about 'Zoe'"),
    ],
)
def test_impossible_premises(change, fault):
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars")])
    with pytest.raises(UserError) as raised:
        change(premises)
    assert fault in str(raised.value)
