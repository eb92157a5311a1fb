"""``interp.generate``: one question or several, with and without an intervention."""

from collections.abc import Sequence
from typing import Any

import pytest

import interp
from interp.errors import UserError
from interp.interventions.generate import one_each, questions_of
from interp.models import HookedModel
from probes.detector.detections import Detection

QUESTIONS = [
    "Why is Paris the capital of Germany?",
    "When did Rome become the capital of Spain?",
    "Which country is Tokyo the capital of?",
]
OBJECTS = ["Germany", "Spain", "Tokyo"]
HEADS: dict[str, Any] = {"heads": [(0, 1), (1, 2), (2, 3)], "site": "output"}


class SomeFire:
    """A detector that fires at the word Paris, on the first token."""

    def detect(self, model: Any, questions: Sequence[str], **more: Any) -> list[Detection]:
        return [
            Detection(True, 0.9, (0, 3), (0, 1)) if "Paris" in one else Detection(False, 0.1)
            for one in questions
        ]


def test_several_questions_are_answered_as_each_alone(tiny_llama: HookedModel) -> None:
    alone = [interp.generate(tiny_llama, one, max_new_tokens=6) for one in QUESTIONS]
    assert interp.generate(tiny_llama, QUESTIONS, max_new_tokens=6) == alone
    assert interp.generate(tiny_llama, tuple(QUESTIONS[:1]), max_new_tokens=6) == alone[:1]
    assert interp.generate(tiny_llama, []) == []


def test_each_question_has_its_own_false_object(tiny_llama: HookedModel) -> None:
    alone = [
        interp.generate(tiny_llama, one, false_object=words, max_new_tokens=6, **HEADS)
        for one, words in zip(QUESTIONS, OBJECTS, strict=True)
    ]
    together = interp.generate(
        tiny_llama, QUESTIONS, false_object=OBJECTS, max_new_tokens=6, **HEADS
    )
    assert together == alone
    assert together != interp.generate(tiny_llama, QUESTIONS, max_new_tokens=6)
    same = interp.generate(tiny_llama, QUESTIONS, false_object="capital", max_new_tokens=6, **HEADS)
    assert len(same) == 3


def test_the_gate_acts_where_it_fires_only(tiny_llama: HookedModel) -> None:
    options: dict[str, Any] = {"gate": "probe", "detector": SomeFire(), "max_new_tokens": 6}
    free = interp.generate(tiny_llama, QUESTIONS, max_new_tokens=6)
    gated = interp.generate(tiny_llama, QUESTIONS, **options, **HEADS)
    assert gated[1:] == free[1:]
    assert gated[0] == interp.generate(tiny_llama, QUESTIONS[0], **options, **HEADS)


@pytest.mark.parametrize("question", [None, 3, b"Why?", {"Why?": 1}, ["Why?", 3], [["Why?"]]])
def test_what_is_no_question_is_refused(question: Any) -> None:
    with pytest.raises(UserError, match="question"):
        questions_of(question)


@pytest.mark.parametrize("false_object", [["Germany"], 3, b"Germany"])
def test_false_objects_that_do_not_fit(false_object: Any) -> None:
    with pytest.raises(UserError, match=r"false.object"):
        one_each(false_object, 3)
    assert one_each("Germany", 2) == ["Germany", "Germany"]


def test_a_count_of_tokens_below_none(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        interp.generate(tiny_llama, QUESTIONS[0], max_new_tokens=-1)


def test_no_tokens_are_an_empty_answer(tiny_llama: HookedModel) -> None:
    assert interp.generate(tiny_llama, QUESTIONS[0], max_new_tokens=0) == ""
    assert interp.generate(tiny_llama, QUESTIONS, max_new_tokens=0) == ["", "", ""]
