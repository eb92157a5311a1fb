"""Texts where lists of texts belong, and objects that stand in a subject's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.errors import UserError
from interp.evaluation.judges import judge_by_words
from interp.moelora.data.examples import Example
from interp.premises import QuestionList, RawQuestion, load_questions
from interp.premises.questions import Question
from interp.premises.relation import Fact
from interp.report.answers import mark_names
from tests.unchecked import unchecked


def question() -> RawQuestion:
    return RawQuestion("What is Paris the capital of?")


def fact() -> Fact:
    return Fact("Cairo", "Nile")


@pytest.mark.parametrize(
    "make",
    [
        lambda: unchecked(question, answers="France"),
        lambda: unchecked(question, answers=(1,)),
        lambda: unchecked(question, text=5),
        lambda: unchecked(question, false_object=1912),
        lambda: unchecked(fact, also_true="Iteru"),
        lambda: unchecked(fact, object=5),
        lambda: unchecked(lambda: Example("t", "Where?", "Paris"), also_true="Lutetia"),
        lambda: QuestionList.of("Why?"),
        lambda: QuestionList.of(pd.DataFrame({"question": ["Why?"]})),
    ],
)
def test_what_is_no_list_of_texts_is_not_read_as_its_letters(make: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r", not ") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_list_of_answers_is_a_tuple() -> None:
    answers = ["France", "the Republic"]
    assert unchecked(question, answers=answers).answers == ("France", "the Republic")
    assert hash(unchecked(fact, also_true=answers)) == hash(
        Fact("Cairo", "Nile", also_true=("France", "the Republic"))
    )


def test_an_object_in_the_subjects_name_is_not_meant() -> None:
    about: Any = {"subject": "Guatemala City", "label": "true_premise", "true_object": "Guatemala"}
    asked = RawQuestion("Why is Guatemala City in Guatemala?", **about)
    assert asked.object_span == (25, 34)
    assert not judge_by_words(asked, "Guatemala City is in Spain.").names_answer
    assert judge_by_words(asked, "Guatemala City is in Guatemala.").names_answer


def test_an_object_in_the_subjects_name_labels_no_question(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    rows = [f"Why is Guatemala City the capital of {name}?" for name in ("Spain", "Guatemala")]
    path.write_text(
        "question,subject,object,false_object\n"
        + "".join(f"{row},Guatemala City,Guatemala,Spain\n" for row in rows)
    )
    labels = [question.label for question in load_questions(path)]
    assert labels == ["false_premise", "true_premise"]


def test_an_invented_city_does_not_name_its_object() -> None:
    asked = Question("Zarnov City", "Zarnov", "Ostrel", "why", "capitals")
    assert not asked.names_true("Zarnov City is the capital of Ostrel.")
    assert asked.names_false("Zarnov City is the capital of Ostrel.")
    assert asked.names_true("Zarnov City is the capital of Zarnov.")
    pieces = mark_names(
        "Zarnov City is in Zarnov.",
        true_object="Zarnov",
        false_object="Ostrel",
        subject="Zarnov City",
    )
    assert [(piece.text, piece.role) for piece in pieces] == [
        ("Zarnov City is in ", ""),
        ("Zarnov", "true"),
        (".", ""),
    ]
