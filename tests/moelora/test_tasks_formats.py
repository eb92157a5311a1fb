"""Rows of known data sets, by hand; mappings; what cannot be read."""

from typing import Any

import pytest

from interp.errors import UserError
from interp.moelora.data.examples import Example, kind_of
from interp.moelora.data.formats import ColumnMapping, detect
from interp.moelora.data.numbers import numbers_in, parse_number


def read(row: dict[str, Any]) -> Example:
    return detect(row)(row, "task")


def test_our_own_format_with_everything_given() -> None:
    row = {
        "task": "geography",
        "prompt": "Which is it?",
        "answer": "B",
        "response": "B) Rome",
        "subject": "Italy",
        "options": ["A", "B"],
        "note": "ignored",
    }
    one = read(row)
    assert (one.task, one.kind, one.response) == ("geography", "option", "B) Rome")
    assert (one.options, one.subject) == (("A", "B"), "Italy")


def test_our_own_format_at_its_barest() -> None:
    one = read({"prompt": "2 + 2?", "answer": 4})
    assert (one.task, one.answer, one.response, one.kind) == ("task", "4", "4", "number")
    assert one.subject == "2 + 2?"


def test_instruction_format() -> None:
    one = read(
        {
            "instruction": "Answer with true or false: is snow warm?",
            "input": "",
            "output": "the correct answer is false",
            "answer": "false",
        }
    )
    assert one.prompt == "Answer with true or false: is snow warm?"
    assert (one.answer, one.kind) == ("false", "option")
    assert one.response == "the correct answer is false"
    assert one.options == ("true", "false")


def test_instruction_without_an_answer_takes_the_output() -> None:
    one = read({"instruction": "Name the river.", "input": "City: Cairo", "output": "Nile"})
    assert one.prompt == "Name the river.\nCity: Cairo"
    assert (one.answer, one.response, one.kind) == ("Nile", "Nile", "name")


def test_worked_format_takes_calculator_marks_out() -> None:
    one = read(
        {
            "question": "Tom has 2 boxes of 3 pens. How many pens?",
            "answer": "He has 2*3=<<2*3=6>>6 pens.\n#### 6",
        }
    )
    assert one.response == "He has 2*3=6 pens.\nThe answer is 6."
    assert (one.answer, one.kind) == ("6", "number")


def test_equation_format_puts_numbers_in_and_works_out() -> None:
    one = read(
        {
            "Question": "Ann has number0 pens , buys number1 and loses number2 . How many now ?",
            "Numbers": "41.0 44.0 2.5",
            "Equation": "- + number0 number1 number2",
            "Answer": "82.5",
        }
    )
    assert one.prompt == "Ann has 41 pens, buys 44 and loses 2.5. How many now?"
    assert one.response == "(41 + 44) - 2.5 = 82.5. The answer is 82.5."
    assert (one.answer, one.kind) == ("82.5", "number")
    assert "number0" in one.subject


def test_equation_keeps_ten_and_one_apart() -> None:
    numbers = " ".join(f"{5 + 3 * index}.0" for index in range(11))
    one = read(
        {
            "Question": "From number10 take number1 .",
            "Numbers": numbers,
            "Equation": "- number10 number1",
            "Answer": "27.0",
        }
    )
    assert one.prompt == "From 35 take 8."
    assert one.response.startswith("35 - 8 = 27.")


@pytest.mark.parametrize(
    ("equation", "said"),
    [
        ("- number0", "too early"),
        ("+ number0 number0 number0", "left over: 3"),
        ("+ number0 number1", "Numbers holds 1"),
    ],
)
def test_damaged_equation(equation: str, said: str) -> None:
    row = {"Question": "number0 ?", "Numbers": "3.0", "Equation": equation, "Answer": "3"}
    with pytest.raises(UserError, match=said):
        read(row)


def test_mapping_names_the_columns() -> None:
    mapping = ColumnMapping.parse("prompt=Frage, answer=Antwort")
    one = mapping({"Frage": "Hauptstadt von Italien?", "Antwort": "Rom"}, "quiz")
    assert (one.task, one.prompt, one.answer) == ("quiz", "Hauptstadt von Italien?", "Rom")
    with pytest.raises(UserError, match="no column 'Antwort'; found Frage"):
        mapping({"Frage": "?"}, "quiz")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt=Q", "which column is the answer"),
        ("prompt=Q,answer=A,colour=C", "unknown part 'colour'"),
        ("prompt", "must be pairs"),
        ("", "must be pairs"),
    ],
)
def test_bad_mapping(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ColumnMapping.parse(text)


def test_unknown_columns_are_listed_with_the_known_formats() -> None:
    with pytest.raises(UserError, match=r"columns text, label; known: .*instruction \+ output"):
        detect(["text", "label"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": " ", "answer": "1"}, "prompt is empty"),
        ({"prompt": "?", "answer": None}, "answer is empty"),
        ({"prompt": "?", "answer": ["x"]}, "answer must be text or a number, got list"),
        ({"prompt": "?", "answer": "C", "options": ["A", "B"]}, "none of the options A, B"),
        ({"prompt": "?", "answer": "x", "kind": "colour"}, "unknown kind 'colour'"),
        ({"prompt": "?", "answer": "x", "kind": "number"}, "not a number"),
        ({"prompt": "?", "answer": "x", "also_true": 3}, "also_true must be a list"),
        ({"question": "?", "answer": {"text": "x"}}, "got dict"),
    ],
)
def test_bad_rows(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(row)


NAN = float("nan")
FORMATS: dict[str, dict[str, Any]] = {
    "ours": {"prompt": "?", "answer": "x"},
    "instruction": {"instruction": "?", "output": "Some words.", "answer": "x"},
    "question": {"question": "?", "answer": "x"},
}


@pytest.mark.parametrize("row", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize(
    ("answer", "read_as", "kind"),
    [
        (0, "0", "number"),
        (0.0, "0", "number"),
        (-0.0, "0", "number"),
        (22.0, "22", "number"),
        (2.5, "2.5", "number"),
        (1e22, f"{10**22}", "number"),
        (2**62 + 1, str(2**62 + 1), "number"),
        (True, "true", "option"),
        (False, "false", "option"),
        ("False", "false", "option"),
        ("Yes", "yes", "option"),
        ("b", "B", "option"),
        ("Rome", "Rome", "name"),
    ],
)
def test_an_answer_of_any_type_is_read_as_what_it_says(
    row: dict[str, Any], answer: Any, read_as: str, kind: str
) -> None:
    one = read(row | {"answer": answer})
    assert (one.answer, one.kind) == (read_as, kind)


@pytest.mark.parametrize("row", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("value", [["x"], [], {"x": 1}, {}, [22.0], b"x", float("inf")])
def test_what_is_no_text_is_refused_by_its_column(row: dict[str, Any], value: Any) -> None:
    for column in row:
        with pytest.raises(UserError, match=f"{column} must be text or a number, got"):
            read(row | {column: value})


@pytest.mark.parametrize("nothing", [None, "", NAN])
def test_nothing_is_no_answer(nothing: Any) -> None:
    one = read(FORMATS["instruction"] | {"answer": nothing, "input": nothing})
    assert (one.answer, one.prompt) == ("Some words.", "?")
    for name in ("ours", "question"):
        with pytest.raises(UserError, match="answer is empty"):
            read(FORMATS[name] | {"answer": nothing})


def test_zero_and_false_are_something_in_every_column() -> None:
    one = read(FORMATS["instruction"] | {"input": 0, "output": False, "answer": 7})
    assert (one.prompt, one.response, one.answer) == ("?\n0", "false", "7")
    one = read({"prompt": 0, "answer": 1, "response": 0, "task": False, "options": [0, 1]})
    assert (one.prompt, one.response, one.task, one.options) == ("0", "0", "false", ("0", "1"))
    with pytest.raises(UserError, match="options holds an empty entry"):
        read({"prompt": "?", "answer": "A", "options": ["A", None]})
    with pytest.raises(UserError, match="options must be a list, got bool"):
        read({"prompt": "?", "answer": "A", "options": False})


def test_an_option_is_written_as_the_options_have_it() -> None:
    one = read({"prompt": "?", "answer": True, "options": ["True", "False"]})
    assert (one.answer, one.response) == ("True", "true")
    assert read({"prompt": "?", "answer": "FALSE", "kind": "name"}).answer == "FALSE"


def test_a_mapping_reads_lists_too() -> None:
    mapping = ColumnMapping.parse("prompt=Q,answer=A,options=Choices,response=Why")
    one = mapping({"Q": "?", "A": 2, "Choices": [1, 2], "Why": None}, "quiz")
    assert (one.answer, one.options, one.response) == ("2", ("1", "2"), "2")
    with pytest.raises(UserError, match="Choices must be a list, got dict"):
        mapping({"Q": "?", "A": 2, "Choices": {"text": ["x"]}, "Why": None}, "quiz")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("12", "number"),
        ("-3.5", "number"),
        ("$1,200", "number"),
        ("1969", "number"),
        ("answer3", "option"),
        ("yes", "option"),
        ("B", "option"),
        ("Rome", "name"),
        ("3 apples", "name"),
    ],
)
def test_kind_is_seen_from_the_answer(answer: str, kind: str) -> None:
    assert kind_of(answer) == kind


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,200", 1200.0), ("$5", 5.0), ("504.0", 504.0), ("−3", -3.0), ("12%", 12.0), ("7.", 7.0)],
)
def test_numbers_are_read(text: str, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "x", "3 4", "1/2", "--3", "3-4"])
def test_other_text_is_no_number(text: str) -> None:
    assert parse_number(text) is None


def test_a_minus_is_a_sign_only_without_a_term_before() -> None:
    assert numbers_in("30-5 = 25, and -4 is below (2)-1") == [30, 5, 25, -4, 2, 1]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which is it?", "answer": "B"},
        {"question": "Which is it?", "answer": "I reason.\n#### B"},
        {"instruction": "Which is it?", "output": "It is B", "answer": "B"},
    ],
)
def test_other_formats_keep_the_parts_beside_their_own(row: dict[str, Any]) -> None:
    beside = {"task": "geography", "subject": "Italy", "options": "A;B", "also_true": None}
    found = read({**row, **beside, "note": "ignored"})
    assert (found.task, found.subject, found.options) == ("geography", "Italy", ("A", "B"))
    assert (found.prompt, found.answer, found.kind) == ("Which is it?", "B", "option")


def test_white_space_makes_no_other_subject() -> None:
    once, again = (Example("t", text, "4") for text in ("2 + 2?", " 2  +\n2? \n"))
    assert once.subject == again.subject


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("minus 3", [-3]),
        ("It is negative $3.50.", [-3.5]),
        ("5 minus 3", [5, 3]),
        ("(2) minus 3", [2, 3]),
        ("5 - 8 = - 3", [5, 8, -3]),
        ("- 3 apples", [3]),  # an item of a list
        ("a minus sign", []),
    ],
)
def test_a_sign_in_words(text: str, numbers: list[float]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    "cell",
    [
        "River Nile; Nil",
        '["River Nile", "Nil"]',
        "['River Nile' 'Nil']",
        "('River Nile', 'Nil')",
        "array(['River Nile', 'Nil'], dtype=object)",
    ],
)
def test_a_cell_with_a_list(cell: str) -> None:
    one = read({"prompt": "Which river?", "answer": "Nile", "also_true": cell})
    assert one.also_true == ("River Nile", "Nil")


def test_a_cell_that_only_looks_like_a_list() -> None:
    with pytest.raises(UserError, match="also_true begins and ends like a list"):
        read({"prompt": "Which river?", "answer": "Nile", "also_true": "[River Nile]"})
