"""Questions of one's own, asked without and with the heads that a planted model is known to use."""

from typing import Any

import numpy as np
import pytest

import interp
from interp.errors import UserError
from interp.evaluation import Verdict, evaluate_questions
from interp.evaluation.question_answers import ActedOn, QuestionAnswer, QuestionAnswers
from interp.heads import HeadSet
from interp.interventions import Constraint, Intervention
from interp.models import HookedModel
from interp.premises import QuestionList, RawQuestion
from tests.planted_detector import KnowsPlantedFacts as Finds

OPTIONS: dict[str, Any] = {"max_new_tokens": 2, "progress": False}


def question(city: int, land: int, **parts: Any) -> RawQuestion:
    return RawQuestion(
        f"Why is city{city} the capital of land{land}?",
        answers=(f"land{city}",),
        label="true_premise" if city == land else "false_premise",
        **parts,
    )


QUESTIONS = QuestionList.of([question(0, 1), question(2, 5), question(3, 3), question(4, 4)])


@pytest.fixture(scope="module")
def reader(planted_heads: dict[str, tuple[int, int]]) -> Constraint:
    return Constraint(HeadSet((planted_heads["attention"],), "attention"))


@pytest.fixture(scope="module")
def answered(planted: HookedModel, reader: Constraint) -> QuestionAnswers:
    return evaluate_questions(
        planted, QUESTIONS, heads=reader, detector=Finds(), random_sets=3, **OPTIONS
    )


def test_the_constraint_acts_where_the_detector_fires(answered: QuestionAnswers) -> None:
    assert [each.acted.fired for each in answered.answers] == [True, True, False, False]
    assert [each.baseline.split()[0] for each in answered.answers] == [
        *("land1", "land5", "land3", "land4")
    ]
    assert [each.constrained.split()[0] for each in answered.answers] == [
        *("land0", "land2", "land3", "land4")
    ]
    content = answered.to_dict()
    groups = content["groups"]
    assert list(groups) == ["false_premise", "true_premise"]
    assert groups["false_premise"]["fired"] == [1.0, 1.0, 1.0]
    assert groups["false_premise"]["baseline"]["names_answer"] == [0.0, 0.0, 0.0]
    assert groups["false_premise"]["constrained"]["names_answer"] == [1.0, 1.0, 1.0]
    assert groups["true_premise"]["unchanged"] == [1.0, 1.0, 1.0]
    assert groups["false_premise"]["baseline"]["names_false_object"] is None
    assert groups["false_premise"]["change"]["names_answer"] == [1.0, 1.0, 1.0]
    null = groups["false_premise"]["random_null"]
    assert null["n_sets"] == 3
    assert null["names_answer"] == {"mean": 0.0, "p95": 0.0, "percentile_of_selected": 100.0}
    assert (content["judge"], content["heads"]) == ("judge_by_words", [[1, 2]])


def test_the_answers_are_those_of_generate(
    planted: HookedModel, reader: Constraint, answered: QuestionAnswers
) -> None:
    """Agreement with the path for a single question."""
    under = Intervention.of(reader, gate="probe")
    for each in answered.answers:
        text = each.question.text
        assert each.baseline == interp.generate(planted, text, max_new_tokens=2)
        alone = interp.generate(planted, text, heads=under, detector=Finds(), max_new_tokens=2)
        assert each.constrained == alone


def test_named_words_are_acted_on_and_the_detector_reads_the_others(
    planted: HookedModel, reader: Constraint
) -> None:
    mixed = QuestionList.of([question(0, 1, false_object="land1"), question(2, 5)])
    detector = Finds()
    found = evaluate_questions(
        planted, mixed, heads=reader, gate="oracle", detector=detector, **OPTIONS
    )
    assert detector.asked == [mixed.texts[1]]
    assert [each.acted.by for each in found.answers] == ["file", "detector"]
    assert [each.constrained.split()[0] for each in found.answers] == ["land0", "land2"]
    row = found.answers[0].to_row()
    assert row["question"][slice(*row["words"])] == "land1"
    assert row["probability"] is None
    group = found.to_dict()["groups"]["false_premise"]
    assert (group["n"], group["n_with_false_object"]) == (2, 1)
    assert group["baseline"]["names_false_object"] == [1.0, 1.0, 1.0]


def test_a_head_that_does_nothing_changes_nothing(planted: HookedModel) -> None:
    """Negative control."""
    found = evaluate_questions(
        planted,
        QUESTIONS,
        heads=[(2, 0)],
        site="attention",
        detector=Finds(),
        **OPTIONS,
    )
    assert all(each.baseline == each.constrained for each in found.answers)


def answer(
    label: Any, before: bool, after: bool, *, subject: str, fired: bool = True
) -> QuestionAnswer:
    asked = RawQuestion(f"Why {subject} {label} {before} {after}?", label=label, subject=subject)
    texts = ("a", "b" if fired else "a")
    verdicts = Verdict(before), Verdict(after)
    return QuestionAnswer(asked, ActedOn(fired, "detector", 0.5), *texts, *verdicts)


def test_rates_by_hand() -> None:
    """Three questions about two subjects: the intervals resample the subjects."""
    whole = QuestionAnswers(
        Intervention.of([(0, 1)], "output"),
        *("model", "float32", 4, "q.csv", "judge"),
        answers=(
            answer("false_premise", False, True, subject="a"),
            answer("false_premise", False, False, subject="a", fired=False),
            answer("false_premise", True, True, subject="b"),
            answer(None, False, False, subject="c"),
        ),
        null=(
            tuple(map(Verdict, (True, False, False, True))),
            tuple(map(Verdict, (False, False, False, False))),
        ),
    )
    groups = whole.to_dict()["groups"]
    group = groups["false_premise"]
    assert (group["n"], group["n_subjects"]) == (3, 2)
    assert group["fired"][0] == pytest.approx(2 / 3)
    assert group["unchanged"][0] == pytest.approx(1 / 3)
    assert group["baseline"]["rebuts"] == pytest.approx([1 / 3, 0.0, 1.0])
    assert group["constrained"]["rebuts"] == pytest.approx([2 / 3, 0.5, 1.0])
    assert group["change"]["rebuts"] == pytest.approx([1 / 3, 0.0, 0.5])
    null = group["random_null"]
    assert null["rebuts"]["mean"] == pytest.approx(1 / 6)
    assert null["rebuts"]["p95"] == pytest.approx(np.quantile([1 / 3, 0], 0.95))
    assert null["rebuts"]["percentile_of_selected"] == 100.0
    assert null["names_answer"] is group["change"]["names_answer"] is None
    assert groups["unlabelled"]["n"] == 1
    assert len(whole.to_dataframe()) == 4
    assert "it acted on 3" in whole._shown().words


def test_a_question_beyond_the_positions_is_named(tiny_gpt2: HookedModel) -> None:
    long = RawQuestion("why " * 600, line=7)
    listed = QuestionList((RawQuestion("Why?", line=2), long), "q.csv")
    with pytest.raises(UserError, match=r"q\.csv: line 7: the question has \d+ tokens.* 512 pos"):
        evaluate_questions(tiny_gpt2, listed, heads=[(0, 1)], site="output", **OPTIONS)


def test_what_cannot_be_compared_is_refused(planted: HookedModel) -> None:
    with pytest.raises(UserError, match="has no heads and no experts"):
        evaluate_questions(planted, QUESTIONS, heads=(), site="output", **OPTIONS)
    with pytest.raises(UserError, match="give reference"):
        evaluate_questions(
            planted, QUESTIONS, heads=[(0, 1)], site="output", mode="mean", **OPTIONS
        )
