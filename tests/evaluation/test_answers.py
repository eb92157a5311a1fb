"""Greedy answers without and with the constraint, and what they name."""

from typing import Any

import pytest

from interp.evaluation import AnswerPair
from interp.evaluation.answers import answer_pairs, baseline_answers, mention_rates
from interp.heads import HeadSet
from interp.interventions import Constraint
from interp.models import HookedModel
from interp.premises import Fact, Premises, load_premises


def pair(subject: str, *, true: tuple[bool, bool], false: tuple[bool, bool]) -> AnswerPair:
    """Flags are (baseline, constrained)."""
    return AnswerPair(
        kind="false_premise",
        template="why",
        subject=subject,
        true_object="land0",
        false_object="land1",
        question="Why land1?",
        object_span=(4, 9),
        baseline="",
        constrained="",
        baseline_names_true=true[0],
        baseline_names_false=false[0],
        constrained_names_true=true[1],
        constrained_names_false=false[1],
    )


def test_mention_rates_by_hand() -> None:
    pairs = [
        pair("a", true=(False, True), false=(True, False)),
        pair("a", true=(False, True), false=(True, True)),
        pair("b", true=(True, True), false=(True, False)),
        pair("b", true=(False, False), false=(True, False)),
    ]
    assert mention_rates(pairs, "baseline") == {
        "true_object_mention_rate": [0.25, 0.0, 0.5],
        "false_object_mention_rate": [1.0, 1.0, 1.0],
    }
    assert mention_rates(pairs, "constrained") == {
        "true_object_mention_rate": [0.75, 0.5, 1.0],
        "false_object_mention_rate": [0.25, 0.0, 0.5],
    }


@pytest.mark.parametrize("site", ["output", "attention"])
def test_the_planted_model_names_the_false_object_until_it_is_constrained(
    planted: HookedModel,
    planted_premises: Premises,
    planted_heads: dict[str, tuple[int, int]],
    site: Any,
) -> None:
    premises = planted_premises.first(6)
    asked = baseline_answers(planted, premises, "false_premise", max_new_tokens=2, progress=False)
    constraint = Constraint(HeadSet((planted_heads[site],), site))
    pairs = answer_pairs(planted, asked, constraint, max_new_tokens=2, progress=False)
    assert [(one.subject, one.template) for one in pairs] == [
        (question.subject, question.template) for question in premises.questions()
    ]
    for one in pairs:
        assert one.question[slice(*one.object_span)] == one.false_object
        assert one.baseline.split()[0] == one.false_object
        assert one.baseline_names_false
        assert not one.baseline_names_true
        assert one.constrained.split()[0] == one.true_object
        assert one.constrained_names_true
        assert not one.constrained_names_false


def test_twins_ask_about_the_true_object(planted: HookedModel, planted_premises: Premises) -> None:
    asked = baseline_answers(
        planted, planted_premises.first(3), "true_premise", max_new_tokens=1, progress=False
    )
    for question, filled, answer in zip(asked.questions, asked.filled, asked.baseline, strict=True):
        assert filled.text[slice(*filled.object)] == question.true_object
        assert answer == question.true_object


def test_no_heads_leave_the_answers_as_they_are(tiny_gpt2: HookedModel) -> None:
    premises = load_premises("capitals", limit=3).with_templates(["why", "famous"])
    asked = baseline_answers(tiny_gpt2, premises, "false_premise", max_new_tokens=5, progress=False)
    pairs = answer_pairs(
        tiny_gpt2, asked, Constraint(HeadSet(())), max_new_tokens=5, progress=False
    )
    assert all(one.baseline == one.constrained for one in pairs)
    assert any(one.baseline for one in pairs)


def test_another_name_of_the_true_object_counts(
    planted: HookedModel, planted_premises: Premises, planted_heads: dict[str, tuple[int, int]]
) -> None:
    facts = [Fact("city0", "land9", also_true=("land0",)), *planted_premises.facts[1:5]]
    premises = planted_premises.with_facts(facts).with_templates(["why"])
    asked = baseline_answers(planted, premises, "false_premise", max_new_tokens=1, progress=False)
    constraint = Constraint(HeadSet((planted_heads["attention"],), "attention"))
    first = answer_pairs(planted, asked, constraint, max_new_tokens=1, progress=False)[0]
    assert first.constrained == "land0"
    assert first.constrained_names_true
