"""Other people's files of questions: what is read, what is refused, and how it is said."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.premises import QuestionList, RawQuestion, load_questions
from interp.premises.question_files import LABELS
from interp.premises.relation import names

BASIC = 'question,answer,label\nWhy is Paris in Spain?,"France; Île-de-France",1\nWhy?,,0\n'


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> QuestionList:
    return load_questions(written(folder, name, content), **options)


def test_a_csv_by_hand(tmp_path: Path) -> None:
    found = read(tmp_path, "q.csv", BASIC)
    assert found.questions == (
        RawQuestion("Why is Paris in Spain?", ("France", "Île-de-France"), "false_premise", line=2),
        RawQuestion("Why?", (), "true_premise", line=3),
    )
    assert found.counts() == {"false_premise": 1, "true_premise": 1}
    assert list(found.to_dataframe()["label"]) == ["false_premise", "true_premise"]
    assert "1 false premise" in found._shown().words


@pytest.mark.parametrize(
    "content",
    [
        BASIC.replace("\n", "\r\n"),
        "\ufeff" + BASIC,
        BASIC.replace("question,answer,label", " question ,answer,label"),
        BASIC + "\n\n",
    ],
    ids=["CRLF", "BOM", "spaces in the header", "blank lines"],
)
def test_the_same_csv_from_another_editor(content: str, tmp_path: Path) -> None:
    expected = read(tmp_path, "a.csv", BASIC).questions
    assert read(tmp_path, "b.csv", content).questions == expected


def test_named_columns(tmp_path: Path) -> None:
    content = "prompt,gold,is_fp,other\nWhy?,yes,True,x\n"
    for columns in ("question=prompt, answer=gold,label=is_fp", {"question": "prompt"}):
        found = read(tmp_path, "q.csv", content, columns=columns)
        assert found.texts == ("Why?",)
    assert read(
        tmp_path, "q.csv", content, columns="question=prompt,answer=gold,label=is_fp"
    ).questions[0] == RawQuestion("Why?", ("yes",), "false_premise", line=2)


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ('["Paris", "Lyon; or so", 7]', ("Paris", "Lyon; or so", "7")),
        ("['Paris', \"Côte d'Ivoire\"]", ("Paris", "Côte d'Ivoire")),
        ("Paris; Lyon ;; ", ("Paris", "Lyon")),
        ("Paris", ("Paris",)),
        ("[sic] he never did", ("[sic] he never did",)),
        ("[]", ()),
        ("", ()),
        ("Paris;Paris", ("Paris",)),
    ],
)
def test_answers_in_a_cell(cell: str, answers: tuple[str, ...], tmp_path: Path) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["question", "answer"], ["Why?", cell]])
    assert read(tmp_path, "q.csv", text.getvalue()).questions[0].answers == answers


@pytest.mark.parametrize("label", list(LABELS))
def test_every_word_for_a_label(label: Any, tmp_path: Path) -> None:
    for word in LABELS[label]:
        for spelt in (word, word.upper(), word.replace(" ", "_"), f" {word.replace(' ', '-')} "):
            found = read(tmp_path, "q.csv", f"question,label\nWhy?,{spelt}\n")
            assert found.questions[0].label == label


def test_truth_values_and_numbers_are_labels_in_json(tmp_path: Path) -> None:
    lines = [{"question": f"Why {n}?", "label": value} for n, value in enumerate([True, 0, 1.0])]
    found = read(tmp_path, "q.jsonl", "\n".join(map(json.dumps, lines)))
    labels = ["false_premise", "true_premise", "false_premise"]
    assert [question.label for question in found] == labels


def test_an_edited_fact_with_several_questions(tmp_path: Path) -> None:
    entry = {
        "subject": "Paris",
        "relation": "capital of",
        "object": "France",
        "false_object": "Germany",
        "questions": [
            "Why is Paris the capital of Germany?",
            "Why is PARIS the capital of france?",
            "Where is Paris?",
            "Germany or France?",
        ],
    }
    found = read(tmp_path, "q.json", json.dumps([entry])).questions
    assert [question.label for question in found] == [
        *("false_premise", "true_premise", None, None)
    ]
    texts = [
        None if question.object_span is None else question.text[slice(*question.object_span)]
        for question in found
    ]
    assert texts == ["Germany", "france", None, "Germany"]
    assert {question.cluster for question in found} == {"Paris"}
    assert found[0].right_answers == ("France",)


def test_nested_edits_by_dotted_paths(tmp_path: Path) -> None:
    entry = {
        "requested_rewrite": [
            {
                "subject": "Paris",
                "target_true": {"str": "France"},
                "target_new": {"str": "Germany"},
                "question": "Why is Paris the capital of Germany?",
            }
        ],
        "a.b": "dotted",
    }
    start = "requested_rewrite.0."
    columns = {
        "question": f"{start}question",
        "subject": f"{start}subject",
        "object": f"{start}target_true.str",
        "false_object": f"{start}target_new.str",
        "relation": "a.b",
    }
    found = read(tmp_path, "q.jsonl", json.dumps(entry), columns=columns).questions[0]
    assert (found.subject, found.true_object, found.false_object, found.relation) == (
        *("Paris", "France", "Germany", "dotted"),
    )
    assert found.label == "false_premise"
    with pytest.raises(UserError, match=r"line 1: no column 'requested_rewrite\.1\.question'"):
        read(
            tmp_path, "q.jsonl", json.dumps(entry), columns={"question": start[:-2] + "1.question"}
        )


def test_a_name_within_a_word_is_no_mention() -> None:
    """Negative control: Niger is not in Nigeria, nor Oman in Romania."""
    assert RawQuestion("Why Nigeria?", false_object="Niger").object_span is None
    assert RawQuestion("Niger, Nigeria?", false_object="Niger").object_span == (0, 5)
    assert RawQuestion("A b, a b c?", false_object="a b").object_span == (5, 8)


def test_plain_questions(tmp_path: Path) -> None:
    found = read(tmp_path, "q.txt", '\ufeffWhy?\r\n\r\n  When? \nA, "b"?\n')
    assert found.texts == ("Why?", "When?", 'A, "b"?')
    assert [question.line for question in found] == [1, 3, 4]
    assert found.counts() == {"unlabelled": 3}


def test_repeated_questions_stay_and_are_resampled_together(tmp_path: Path) -> None:
    found = read(tmp_path, "q.csv", "question,label\nWhy?,1\nWhen?,0\nWhy?,yes\n")
    assert (len(found), found.n_repeated) == (3, 1)
    assert found.questions[0].cluster == found.questions[2].cluster


def test_a_question_of_5000_words_is_read(tmp_path: Path) -> None:
    text = "why " * 4999 + "not?"
    assert read(tmp_path, "q.csv", f"question\n{text}\n").texts == (text,)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.csv", "", r"q\.csv: holds no questions"),
        ("q.csv", "question,label\n", r"q\.csv: holds no questions"),
        ("q.json", "[]", r"q\.json: holds no questions"),
        ("q.jsonl", "\n\n", r"q\.jsonl: holds no questions"),
        ("q.txt", "\n \n", r"q\.txt: holds no questions"),
        ("q.csv", "prompt,label\nWhy?,1\n", r"line 2: no column 'question'; found prompt, label"),
        ("q.csv", "question,label\nWhy?,1\nHow?,maybe\n", r"line 3: unknown label 'maybe'; known"),
        ("q.csv", "question,label\nWhy?,2\n", r"unknown label '2'.*false_premise: 1, true, yes"),
        ("q.csv", "question,label\nWhy?,1\nWhy?,0\n", r"line 3: the question of line 2 again"),
        ("q.csv", "question,label\n  ,1\n", r"line 2: the question is empty"),
        ("q.csv", "question\nWhy\0?\n", r"line 2: the question holds the control character"),
        ("q.txt", "Why?\nHow\x1b[2J?\n", r"line 2: the question holds the control character"),
        ("q.csv", "question,question\na,b\n", r"two columns are named 'question'"),
        ("q.csv", "question,answer\nWhy?,[1\n", None),
        ("q.csv", "question,answer\nWhy?,[a b]\n", r"line 2: answer begins and ends like a list"),
        ("q.csv", "question,answer\nWhy?,[[[[[]]]]]\n", r"answer must be text or a number"),
        ("q.csv", f"question,answer\nWhy?,{'[' * 9000}{']' * 9000}\n", r"is no list that JSON"),
        ("q.csv", "question\nWhy?,x\n", r"line 2: 2 cells, but the header names 1"),
        ("q.jsonl", '{"question": {"a": 1}}', r"line 1: question must be text or a number"),
        ("q.jsonl", '{"question": []}', r"line 1: the question is empty"),
        ("q.jsonl", '{"question": "a"}\n[1]', r"line 2: must hold a JSON object such as"),
        ("q.jsonl", '{"question": "\\ud800"}', r"line 1: .*surrogate"),
        ("q.json", '[{"question": "a", "object": "b", "false_object": "b"}]', r"are both 'b'"),
        ("q.tsv", "question\n", r"known endings: \.csv, \.json, \.jsonl, \.txt"),
        ("q.csv", b"question\nWhy \xff?\n", r"line 2: not UTF-8"),
    ],
)
def test_what_is_refused_and_how(
    name: str, content: str | bytes, said: str | None, tmp_path: Path
) -> None:
    if said is None:  # an unfinished list is a text
        assert read(tmp_path, name, content).questions[0].answers == ("[1",)
        return
    with pytest.raises(UserError, match=said) as stop:
        read(tmp_path, name, content)
    assert str(stop.value).startswith(str(tmp_path / name))


def test_wrong_columns_and_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown part 'prompt'; known: question, answer"):
        read(tmp_path, "q.csv", BASIC, columns="prompt=question")
    with pytest.raises(UserError, match="pairs such as question=prompt"):
        read(tmp_path, "q.csv", BASIC, columns="question")
    with pytest.raises(UserError, match="no column 'gold'"):
        read(tmp_path, "q.csv", BASIC, columns="answer=gold")
    with pytest.raises(UserError, match="a text file has no columns"):
        read(tmp_path, "q.txt", "Why?", columns="question=a")
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        load_questions(tmp_path / "none.csv")
    with pytest.raises(UserError, match="holds no questions"):
        QuestionList.of([])


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and text
)
ANSWERS = st.lists(CELLS, max_size=3, unique=True).map(tuple)
QUESTIONS = st.lists(
    st.tuples(CELLS, ANSWERS, st.sampled_from(["false_premise", "true_premise", None])),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row[0],
)


@settings(max_examples=40, derandomize=True)
@given(QUESTIONS)
def test_what_is_written_is_what_is_read(tmp_path_factory: Any, rows: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["question", "answer", "label"])
    for question, answers, label in rows:
        writer.writerow([question, json.dumps(answers, ensure_ascii=False), label])
    objects = [dict(zip(("question", "answer", "label"), row, strict=True)) for row in rows]
    for name, content in (
        ("rows.csv", text.getvalue()),
        ("rows.json", json.dumps(objects)),
        ("rows.jsonl", "\n".join(map(json.dumps, objects))),
    ):
        found = read(folder, name, content)
        assert [(each.text, each.answers, each.label) for each in found] == rows


@settings(max_examples=40, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from(["csv", "json", "jsonl", "txt"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: Any, raw: bytes, ending: str) -> None:
    path = written(tmp_path_factory.getbasetemp(), f"bytes.{ending}", raw)
    message = ""
    try:
        load_questions(path)
    except UserError as error:
        message = str(error)
    assert message.isprintable()


@pytest.mark.parametrize("given", ["L’Aquila", "L'Aquila"])
@pytest.mark.parametrize("there", ["L’Aquila", "l'aquila"])
def test_apostrophes_of_either_kind(given: str, there: str) -> None:
    text = f"Is {there} near Rome?"
    assert RawQuestion(text, false_object=given, label="false_premise").object_span == (3, 11)
    assert names(text, given)


def test_decomposed_letters_are_found() -> None:
    question = RawQuestion("Is Lima in Peru\u0301?", false_object="Per\xfa", label="false_premise")
    assert question.object_span == (11, 16)


def test_whole_numbers_of_tables_with_a_gap(tmp_path: Path) -> None:
    (question,) = read(tmp_path, "q.json", '[{"question": "When?", "answer": 1889.0}]').questions
    assert question.answers == ("1889",)
