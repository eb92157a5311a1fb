"""Premises of several relations are those of each, one after another."""

from dataclasses import replace
from typing import Any

import pytest

from interp.errors import UserError
from interp.premises import (
    Fact,
    JointPremises,
    JointSplit,
    Premises,
    Relation,
    Split,
    Template,
    encode_premises,
    load_premises,
)


@pytest.fixture
def parts(planted_premises: Premises) -> tuple[Premises, Premises]:
    other = replace(planted_premises.relation, name="other", mask="city0")
    return planted_premises.first(4), Premises(other, planted_premises.facts[2:8], ("when", "why"))


def test_questions_and_tokens_of_each_in_turn(parts: Any, word_tokenizer: Any) -> None:
    joint = JointPremises(parts)
    assert len(joint) == len(joint.questions()) == 4 * 4 + 6 * 2
    assert joint.templates[-2:] == ("other/when", "other/why")
    assert joint.subjects[0] == "planted/city0"
    assert len(set(joint.subjects)) == 10
    together = encode_premises(word_tokenizer, joint).items
    each = [item for part in parts for item in encode_premises(word_tokenizer, part).items]
    for ours, theirs in zip(together, each, strict=True):
        assert ours.question.template == f"{theirs.question.relation}/{theirs.question.template}"
        assert replace(ours, question=theirs.question) == theirs
    assert joint.mask == "XXXX"  # theirs differ
    assert JointPremises(parts[1:]).mask == "city0"


def test_what_cannot_be_joined(parts: Any, planted_premises: Premises) -> None:
    with pytest.raises(UserError, match="named twice: planted, planted"):
        JointPremises((parts[0], parts[0]))
    with pytest.raises(UserError, match="no relation is left"):
        JointPremises(())
    with pytest.raises(UserError, match="no relation 'films' here; known: planted, other"):
        JointPremises(parts).of("films")
    with pytest.raises(UserError, match="different parts of splits"):
        JointPremises((planted_premises.split().search, parts[1]))


def test_a_joint_split(planted_premises: Premises) -> None:
    other = replace(planted_premises, relation=replace(planted_premises.relation, name="other"))
    split = JointSplit((planted_premises.split(), other.split(seed=1)))
    assert split.relations == ("planted", "other") == split.held_out.relations
    assert split.search.part == "search"
    assert split.held_out.part == "held_out"
    assert split.of("other").search == other.split(seed=1).search
    assert len(split.search) == 2 * 8 * 2


def relation_about(name: str, subjects: str) -> Premises:
    """Each letter is a subject, whose object is that letter twice."""
    facts = tuple(Fact(letter, letter * 2) for letter in subjects)
    relation = Relation(
        name=name,
        description="",
        subject_kind="",
        object_kind="",
        templates=(
            Template("one", "Is {subject} by {object}?"),
            Template("two", "Was {object} by {subject}?"),
        ),
        search_templates=("one",),
        cloze="{subject} is by",
        direct="Where is {subject}?",
        facts=facts,
    )
    return Premises(relation, facts, ("one", "two"))


def parted(premises: Premises, searched: str) -> Split:
    """The split with these subjects in its search part."""
    facts = premises.facts
    return Split(
        replace(
            premises.with_templates(["one"]),
            facts=tuple(fact for fact in facts if fact.subject in searched),
            part="search",
        ),
        replace(
            premises.with_templates(["two"]),
            facts=tuple(fact for fact in facts if fact.subject not in searched),
            part="held_out",
        ),
    )


def test_a_subject_is_on_one_side_in_all_relations() -> None:
    """By hand: A is searched on in the first, d (as D) in the second, and each held out there."""
    first = parted(relation_about("first", "ABCdEF"), "ABC")
    second = parted(relation_about("second", "aDGHIJ"), "DGH")
    joint = JointSplit((first, second))
    assert joint.search.subjects == (
        "first/A",
        "first/B",
        "first/C",
        *map("second/{}".format, "DGH"),
    )
    assert joint.held_out.subjects == ("first/E", "first/F", "second/I", "second/J")
    assert joint.left_out == ("first/d", "second/a")
    assert joint.shared == ()
    assert joint.of("first").search == first.search
    assert "2 held-out facts are left out" in joint._shown().words
    assert JointSplit(joint.splits) == joint
    # Negative control: apart they are as they were, and share nothing with themselves.
    assert JointSplit((first,)).splits == (first,)
    assert JointSplit((first,)).left_out == ()


def test_a_relation_keeps_what_it_could_not_do_without() -> None:
    """Its held-out part would have one fact, and no false object for it."""
    first = parted(relation_about("first", "ABCD"), "AB")
    second = parted(relation_about("second", "AEFG"), "FG")
    joint = JointSplit((first, second))
    assert joint.splits == (first, second)
    assert (joint.left_out, joint.shared) == ((), ("second/A",))
    assert "1 held-out facts stay" in joint._shown().words
    assert "no subject" not in joint._shown().words


def test_shipped_relations_share_no_subject_between_the_parts() -> None:
    names = ("languages", "currencies", "continents")
    alone = tuple(load_premises(name).split() for name in names)
    joint = JointSplit(alone)
    assert joint.shared == ()
    assert 0 < len(joint.left_out) < 0.05 * sum(len(split.held_out.facts) for split in alone)
    parts = [{fact.subject for fact in part.facts} for part in (joint.search, joint.held_out)]
    assert not parts[0] & parts[1]
    assert [split.search for split in joint.splits] == [split.search for split in alone]


def test_premises_print_in_one_line(parts: Any) -> None:
    printed = repr(parts[0]), repr(JointPremises(parts))
    assert printed == (
        "<Premises: 4 facts of 'planted' × 4 templates = 16 questions; part: all.>",
        "<JointPremises: 28 questions of 2 relations: planted, other.>",
    )
    assert all(
        shown._shown().words in text
        for shown, text in zip((parts[0], JointPremises(parts)), printed, strict=True)
    )
