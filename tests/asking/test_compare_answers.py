"""What an intervention changes in answers: on both kinds of model, and what a notebook shows."""

import json
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.asking.compared import ComparedAnswer, ComparedAnswers
from interp.errors import UserError
from interp.heads import HeadSet
from interp.interventions import Intervention
from interp.interventions.head_constraint import Constraint
from interp.models import HookedModel
from tests.fixtures import make_planted_hf_model
from tests.planted_detector import KnowsPlantedFacts

FALSE = "Why is city3 the capital of land5?"
TRUE = "Why is city3 the capital of land3?"
QUESTIONS = [FALSE, TRUE, "When did city1 become the capital of land9?"]
READER = HeadSet(((1, 2),), "attention")


def compared(model: Any, questions: Any = QUESTIONS, **more: Any) -> ComparedAnswers:
    options: dict[str, Any] = {"heads": READER, "max_new_tokens": 3, **more}
    return interp.compare_answers(model, questions, **options)


@pytest.fixture(scope="module")
def plain(word_tokenizer: Any) -> Any:
    return make_planted_hf_model(word_tokenizer)


def test_the_answers_are_those_of_generate(
    planted: HookedModel, word_tokenizer: Any, plain: Any
) -> None:
    detector = KnowsPlantedFacts()
    found = compared(planted, detector=detector)
    assert detector.asked == QUESTIONS  # once each
    expected = interp.generate(
        planted, QUESTIONS, heads=READER, gate="probe", detector=detector, max_new_tokens=3
    )
    assert [answer.constrained for answer in found] == expected
    free = interp.generate(planted, QUESTIONS, max_new_tokens=3)
    assert [answer.baseline for answer in found] == free
    assert [answer.changed for answer in found] == [True, False, True]
    assert [answer.found for answer in found] == ["land5", "", "land9"]
    assert found.intervention.gate == "probe"
    again = compared(plain, tokenizer=word_tokenizer, detector=KnowsPlantedFacts())
    assert again.answers == found.answers


def test_what_the_caller_names_needs_no_detector(
    planted: HookedModel, word_tokenizer: Any, plain: Any
) -> None:
    words = ["land5", None, "land9"]
    found = compared(planted, false_object=words)
    assert found.intervention.gate == "oracle"
    assert [answer.probability for answer in found] == [None] * 3
    assert [answer.fired for answer in found] == [True, False, True]
    assert compared(plain, tokenizer=word_tokenizer, false_object=words).answers == found.answers
    assert found[0].constrained == interp.generate(
        planted, FALSE, heads=READER, false_object="land5", max_new_tokens=3
    )
    assert "as told: constrained at “land5”, another answer" in str(found[0])
    assert "no words are named: the answer stays as it is" in str(found[1])


def test_a_closed_gate_changes_nothing(honest: HookedModel, planted: HookedModel) -> None:
    (answer,) = compared(planted, TRUE, detector=KnowsPlantedFacts())
    assert not answer.fired
    assert answer.baseline == answer.constrained
    assert "gate closed, probability of a false premise 0.10: the answer stays" in str(answer)
    assert str(answer).count("\n") == 2  # one answer, not two
    # Negative control: where no head copies the false object, the open gate changes nothing.
    (answer,) = compared(honest, FALSE, detector=KnowsPlantedFacts())
    assert answer.fired
    assert not answer.changed
    assert "constrained at “land5”, the same answer" in str(answer)


def test_a_saved_intervention_is_read(planted: HookedModel, tmp_path: Path) -> None:
    under = Intervention.of(Constraint(READER), gate="soft")
    path = under.save(tmp_path / "mine.yaml")
    found = compared(planted, heads=path, detector=KnowsPlantedFacts())
    assert found.intervention == under
    assert found.answers == compared(planted, heads=under, detector=KnowsPlantedFacts()).answers


def test_a_run_is_asked_with_its_own_model_only(
    planted: HookedModel,
    honest: HookedModel,
    plain: Any,
    word_tokenizer: Any,
    planted_run: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "manifest.json").write_bytes((planted_run / "manifest.json").read_bytes())
    measures = {"splits": {"held_out": {"false_premise": {"baseline": {}, "constrained": {}}}}}
    setting = {"heads": [[1, 2]], "site": "attention", "mode": "zero", "gate": "oracle"}
    (tmp_path / "evaluation.json").write_text(json.dumps(setting | measures), encoding="utf-8")
    knows = KnowsPlantedFacts()
    expected = compared(planted, detector=knows).answers
    assert compared(planted, heads=tmp_path, detector=knows).answers == expected
    found = compared(plain, tokenizer=word_tokenizer, heads=str(tmp_path), detector=knows)
    assert found.answers == expected
    with pytest.raises(UserError, match="was made with the model 'planted'"):
        compared(honest, heads=tmp_path, detector=knows)


def test_what_does_not_fit_is_refused(
    planted: HookedModel, word_tokenizer: Any, plain: Any
) -> None:
    knows = KnowsPlantedFacts()
    with pytest.raises(UserError, match="give the tokenizer"):
        compared(plain)
    with pytest.raises(UserError, match="has its tokenizer"):
        compared(planted, tokenizer=word_tokenizer)
    with pytest.raises(UserError, match="no heads"):
        compared(planted, heads=[], site="output")
    with pytest.raises(UserError, match="give the words"):
        compared(planted, gate="oracle")
    with pytest.raises(UserError, match="leave it out"):
        compared(planted, gate="probe", false_object="land5", detector=knows)
    with pytest.raises(UserError, match="a detector is for"):
        compared(planted, false_object="land5", detector=knows)
    with pytest.raises(UserError, match="'soft' is for a hooked model"):
        compared(plain, tokenizer=word_tokenizer, gate="soft", detector=knows)
    with pytest.raises(UserError, match="'land5' is not found in the question"):
        compared(planted, TRUE, false_object="land5")
    with pytest.raises(UserError, match=r"head \(9, 0\)"):
        compared(plain, tokenizer=word_tokenizer, heads=[(9, 0)], site="output", detector=knows)
    with pytest.raises(UserError, match="outside the question"):
        ComparedAnswer("a", "b", "c", True, (0, 4))
    assert len(compared(planted, [], detector=knows)) == 0


HOSTILE = ComparedAnswer(
    "Why <b>&amp; {{ x }}</b>?",
    "<script>alert(1)</script> it is so",
    "</td><img src=x onerror=alert(1)> it is so",
    True,
    (4, 12),
    0.5,
)
UNDER = Intervention.of(READER, gate="probe")


def test_no_text_becomes_markup() -> None:
    html = ComparedAnswers(UNDER, (HOSTILE,))._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>" not in html
    assert "<mark>&lt;b&gt;&amp;amp;</mark>" in html
    assert "<del>&lt;script&gt;alert(1)&lt;/script&gt;</del> it is so" in html
    assert "<ins>&lt;/td&gt;&lt;img src=x onerror=alert(1)&gt;</ins> it is so" in html


def test_the_table_and_the_file(tmp_path: Path) -> None:
    same = ComparedAnswer("Why?", "So.", "So.", False, None, 0.25)
    found = ComparedAnswers(UNDER, (HOSTILE, same))
    table = found.to_dataframe()
    assert list(table["changed"]) == [True, False]
    assert list(table["words"]) == ["<b>&amp;", ""]
    assert table["start"].isna().tolist() == [False, True]
    assert table["start"][0] == 4
    rows = [json.loads(line) for line in found.save(tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["constrained"] for row in rows] == [HOSTILE.constrained, "So."]
    assert rows[1] == {**same.to_row(), "start": None}
    assert repr(found).startswith("2 questions: 1 constrained, 1 answered otherwise.")
    assert "»<b>&amp;«" in repr(found)
    assert "{+</td>" in repr(found)
    empty = ComparedAnswers(UNDER, ())
    assert empty.to_dataframe().empty
    assert repr(empty).startswith("0 questions")


def test_a_long_table_is_cut_and_says_so() -> None:
    found = ComparedAnswers(UNDER, (HOSTILE,) * 25)
    assert found._repr_html_().count("<tr>") == 21  # with the heading
    assert "20 of 25 questions" in found._repr_html_()
    assert "(20 of 25" in repr(found)


def test_the_embedded_model_and_what_ships_for_it(smollm: HookedModel) -> None:
    question = "Why is Paris the capital of Germany?"
    found = interp.compare_answers(
        smollm, question, heads=[(23, 4), (23, 7), (19, 1)], site="attention", max_new_tokens=6
    )
    (answer,) = found
    assert answer.found == "Germany"
    assert answer.probability is not None
    assert answer.probability > 0.9
    assert answer.changed
