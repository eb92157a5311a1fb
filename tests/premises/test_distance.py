"""False objects near to the true one and far from it, and the default draw, which is neither's."""

from typing import Any

import pytest

from interp.commands.known import KnowledgeJob, premise_rows, prompts_digest
from interp.errors import UserError
from interp.premises import Fact, FalseObjectDistance, Premises, load_premises, load_relation
from tests.premises.test_questions import relation_of
from tests.premises.test_registry import YAML, write

DIGESTS = {
    "capitals": "e7ced31db5351506",
    "currencies": "78e7a58f4036025a",
    "films": "10d9d56292d8cece",
    "headquarters": "d7ba03f11821bbe1",
    "landmarks": "174ae7cfe98f61c9",
    "languages": "8fcf229411f569c5",
    "nobel": "16e549800dbadcc8",
    "products": "2b582ee2e93376a9",
}
"""First digits of the digest of all questions of the first hundred facts, before there was a
distance: the default draw has to stay as it was."""


def fact_of(subject: str, object_: str, kind: str, *also: str) -> Fact:
    return Fact(subject, object_, also, (("kind", kind),))


FACTS = [
    fact_of("Ann", "balls", "round"),
    fact_of("Bob", "marbles", "round"),
    fact_of("Cid", "cars", "wheeled"),
    fact_of("Dan", "bikes", "wheeled"),
    fact_of("Eve", "chess", ""),
]


def premises_of(facts: list[Fact], distance: FalseObjectDistance = "any", **kw) -> Premises:
    relation = relation_of(facts, near="kind")
    return Premises(relation, relation.facts, relation.template_names, distance=distance, **kw)


def drawn(premises: Premises) -> dict[str, str]:
    return {question.subject: question.false_object for question in premises.questions()}


def test_near_by_hand():
    near = premises_of(FACTS, "near").askable()
    assert drawn(near) == {"Ann": "marbles", "Bob": "balls", "Cid": "bikes", "Dan": "cars"}
    assert {near.distance_of(question) for question in near.questions()} == {"near"}


def test_far_is_never_near():
    for seed in range(20):
        far = premises_of(FACTS, "far", seed=seed).askable()
        assert far.subjects == ("Ann", "Bob", "Cid", "Dan")
        assert {far.distance_of(question) for question in far.questions()} == {"far"}
        assert drawn(far)["Ann"] in {"cars", "bikes"}


def test_an_object_of_two_groups_is_near_to_both():
    facts = [*FACTS, fact_of("Fay", "cars", "round")]
    relation = relation_of(facts, near="kind")
    assert relation.distance(facts[0], "cars") == "near"
    assert relation.distance(facts[3], "cars") == "near"
    assert relation.distance(facts[0], "bikes") == "far"
    assert relation.distance(facts[0], "chess") == ""  # its group is not known
    assert relation.distance(facts[4], "cars") == ""
    assert relation.distance(facts[0], "no object") == ""


def test_facts_left_out_take_their_objects_along():
    # Ann's only near object is Bob's; Bob's only near object is also true of him.
    facts = [
        fact_of("Ann", "balls", "round"),
        fact_of("Bob", "marbles", "round", "balls"),
        *FACTS[2:4],
    ]
    premises = premises_of(facts, "near")
    with pytest.raises(UserError, match=r"no false object for 'Bob'.* or not near; add facts"):
        premises.questions()
    assert premises.askable().subjects == ("Cid", "Dan")
    with pytest.raises(UserError, match="no facts of relation 'toys'"):
        premises.with_facts(facts[:2]).askable()


def test_the_default_draw_knows_no_groups():
    grouped = premises_of(FACTS)
    plain = Premises(relation_of(FACTS), tuple(FACTS), grouped.templates)
    assert grouped.questions() == plain.questions()
    assert grouped.askable() is grouped
    assert {plain.distance_of(question) for question in plain.questions()} == {""}


@pytest.mark.parametrize("name", DIGESTS)
def test_default_questions_are_those_of_old(name):
    assert prompts_digest(load_premises(name, limit=100).split()).startswith(DIGESTS[name])


def test_rows_have_the_distance_only_where_one_was_asked_for():
    plain = load_premises("capitals", limit=30).split()
    assert all("distance" not in row for row in premise_rows(plain))
    near = load_premises("capitals", limit=30, distance="near").split()
    assert {row["distance"] for row in premise_rows(near)} == {"near"}


def test_the_group_decides_no_answer():
    premises = premises_of(FACTS[:1])
    assert KnowledgeJob(premises, "strict").identity()["facts"][0]["fields"] == ()


def test_tables_show_the_distance():
    table = load_premises("capitals", limit=20, distance="far").to_dataframe()
    assert set(table["distance"]) == {"far"}
    assert len(table) == 20 * 4
    assert list(load_premises("continents", limit=9).to_dataframe()["distance"].unique()) == [""]


@pytest.mark.parametrize("distance", ["near", "far"])
def test_no_groups_no_distance(distance):
    with pytest.raises(UserError, match="'continents' does not say which objects are near"):
        load_premises("continents", distance=distance)


def test_unknown_distance():
    distance: Any = "close"
    with pytest.raises((UserError, TypeError), match="close"):
        premises_of(FACTS, distance)


@pytest.mark.parametrize(
    ("near", "fault"),
    [
        ("near: size\n", "near names the column 'size', which the fact about 'Ann' does not have"),
        ("near: [kind]\n", "near must be text"),
        ("near: kind\nfalse_object: next_year\n", "near needs false_object 'another'"),
    ],
)
def test_faulty_near(tmp_path, near, fault):
    file = write(tmp_path, "subject,object,kind\nAnn,1990,a\nBob,1991,b\n", YAML + near)
    with pytest.raises(UserError) as raised:
        load_relation(file)
    assert fault in str(raised.value)


def test_groups_that_differ_in_case_or_space_are_one():
    facts = [
        fact_of("Ann", "balls", "round"),
        fact_of("Bob", "marbles", "Round "),
        fact_of("Cid", "cars", "wheeled"),
        fact_of("Dan", "bikes", "WHEELED"),
    ]
    near = premises_of(facts, "near").askable()
    assert drawn(near) == {"Ann": "marbles", "Bob": "balls", "Cid": "bikes", "Dan": "cars"}
    far = premises_of(facts, "far").askable()
    assert drawn(far)["Ann"] in {"cars", "bikes"}
