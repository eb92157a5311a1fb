"""Premises of several relations are those of each, one after another."""

from dataclasses import replace
from typing import Any

import pytest

from interp.errors import UserError
from interp.premises import JointPremises, JointSplit, Premises, encode_premises


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
