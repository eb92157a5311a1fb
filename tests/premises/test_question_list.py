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
from interp.files.cells import clean_name
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
        ("['Paris' 'City of Paris']", ("Paris", "City of Paris")),
        ("('Paris', 'Lutetia')", ("Paris", "Lutetia")),
        ("{'Paris', 'Lutetia'}", ("Paris", "Lutetia")),
        ("array(['Paris', 'Lutetia'], dtype=object)", ("Paris", "Lutetia")),
        ("a|b", ("a|b",)),
        ("New\u00a0Zealand; Aotearoa\u200b", ("New Zealand", "Aotearoa")),
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
        ("q.csv", "question;label\nWhy, oh why?;1\n", r"line 1: .* are parted by semicolons: save"),
        ("q.csv", "question\tlabel\nWhy?\t1\n", r"line 1: .* are parted by tabs: save"),
        ("q.csv", "question,answer\nWhy?,\"['O''Brien']\"\n", r"line 2: answer begins and ends"),
        ("q.csv", "question,Label\nWhy?,1\n", r"line 2: the column 'Label' is to be named 'label'"),
        (
            "q.csv",
            "question,False object\nWhy?,x\n",
            r"'False object' is to be named 'false_object'",
        ),
        ("q.jsonl", '{"questions": "a", "labels": 1}', r"'labels' is to be named 'label'; or say"),
        ("q.csv", "Question\nWhy?\n", r"'Question' is to be named 'question'"),
        ("q.csv", "question,object,false_object\nWhy?,Rome,rome \n", r"are both 'Rome'"),
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
    some: Any = {"label": "label", "question": 5}  # the tests' own check looks at the first only
    with pytest.raises(UserError, match="a column's name is a str, not 5"):
        read(tmp_path, "q.csv", BASIC, columns=some)
    with pytest.raises(UserError, match="a text file has no columns"):
        read(tmp_path, "q.txt", "Why?", columns="question=a")
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        load_questions(tmp_path / "none.csv")
    with pytest.raises(UserError, match="holds no questions"):
        QuestionList.of([])


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and text
)
ANSWERS = st.lists(
    CELLS.filter(lambda text: clean_name(text) == text), max_size=3, unique=True
).map(tuple)
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


def test_whole_numbers_in_a_csv_of_pandas(tmp_path: Path) -> None:
    rows = (
        "question,answer,object,false_object,label\nWhy 1911?,1912.0,1912.0,1911.0,1.0\nb?,,,,0.0\n"
    )
    first, second = read(tmp_path, "q.csv", rows).questions
    assert (first.answers, first.true_object, first.false_object) == (("1912",), "1912", "1911")
    assert (first.label, second.label) == ("false_premise", "true_premise")
    assert first.object_span == (4, 8)
    rows = "question,answer\nWhen?,1912.0\nHow much?,2.5\nWhere?,Paris\n"
    answers = [each.answers for each in read(tmp_path, "q.csv", rows)]
    assert answers == [("1912",), ("2.5",), ("Paris",)]


@pytest.mark.parametrize("beside", ["5.36.1", "7", '"1,912"'])
def test_a_column_that_pandas_did_not_write_keeps_its_points(beside: str, tmp_path: Path) -> None:
    found = read(tmp_path, "q.csv", f"question,answer\nWhich Python?,3.0\nb?,{beside}\n")
    assert [each.answers for each in found] == [("3.0",), (beside.strip('"'),)]


def test_two_columns_for_one_part(tmp_path: Path) -> None:
    rows = (
        "question,answer,answers,object,true_object\n"
        "a?,UK,\"['UK' 'Britain']\",,France\n"
        "b?,,x;y,Spain,Italy\n"
    )
    first, second = read(tmp_path, "q.csv", rows).questions
    assert (first.answers, first.true_object) == (("UK", "Britain"), "France")
    assert (second.answers, second.true_object) == (("x", "y"), "Spain")


def test_a_column_may_have_any_name_once_its_part_is_named(tmp_path: Path) -> None:
    rows = "question,Label,fp,labelled_by\nWhy?,maybe,1,me\n"
    assert read(tmp_path, "q.csv", rows, columns="label=fp").questions[0].label == "false_premise"
    rows = "question,Label\nWhy?,1\n"
    assert read(tmp_path, "q.csv", rows, columns="label=Label").counts() == {"false_premise": 1}


def test_names_lose_what_is_not_seen_and_questions_keep_their_lines(tmp_path: Path) -> None:
    row = {
        "question": "Where is\n\nWellington,  in Peru? ",
        "subject": "\u200eWellington\u200e",
        "object": "New\u00a0Zealand",
        "false_object": "Peru\u200b",
        "answer": ["می\u200cخواهم", "Aotearoa\u00ad"],
    }
    (found,) = read(tmp_path, "q.json", json.dumps([row])).questions
    assert found.text == "Where is\n\nWellington,  in Peru?"
    assert (found.subject, found.true_object, found.false_object) == (
        "Wellington",
        "New Zealand",
        "Peru",
    )
    assert found.answers == ("می\u200cخواهم", "Aotearoa")


def test_lines_end_as_on_any_machine(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        found = read(tmp_path, "q.txt", f"Why?{end}{end}When?{end}")
        assert [(each.text, each.line) for each in found] == [("Why?", 1), ("When?", 3)]
