"""Files of questions: what is written is read, and a fault is told with its line."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.files.row_files import parquet_rows
from interp.moelora.data.formats import ColumnMapping
from interp.moelora.data.reading import read_examples
from interp.moelora.data.sources import load_examples, load_split

GOOD = {"prompt": "Which river?", "answer": "Nile"}
TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


def write(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_json_lines_round_trip(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / "data.jsonl"
    lines = [
        json.dumps({"prompt": p, "answer": a, "kind": "name"}, ensure_ascii=False) for p, a in rows
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    read = [(one.prompt, one.answer) for one in read_examples(path)]
    assert read == [(prompt, answer.strip()) for prompt, answer in rows]


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_csv_round_trip(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / "data.csv"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "answer", "kind"), *((p, a, "name") for p, a in rows)])
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    read = [(one.prompt, one.answer) for one in read_examples(path)]
    assert read == [(prompt, answer.strip()) for prompt, answer in rows]


@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for suffix in (".jsonl", ".csv"):
        path = folder / f"data{suffix}"
        path.write_bytes(content)
        said = None
        try:
            examples = read_examples(path)
        except UserError as error:
            examples, said = (), str(error)
        assert examples if said is None else said.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"prompt": "?"', "line 3: not valid JSON"),
        ("[1, 2]", "line 3: must hold a JSON object"),
        ('"text"', "line 3: must hold a JSON object"),
        ({"prompt": "", "answer": "x"}, "line 3: prompt is empty"),
        ({"prompt": "?"}, "line 3: answer is empty"),
        ({"prompt": "?", "answer": ["x"]}, "line 3: answer must be text"),
    ],
)
def test_json_lines_name_the_line(bad: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, "", bad, GOOD)
    with pytest.raises(UserError, match=said) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("only one cell", "line 5: 1 cells, but the header names 2"),
        ('"unclosed', "line 5: not valid CSV"),
        (",Nile", "line 5: prompt is empty"),
    ],
)
def test_csv_names_the_line(bad: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "prompt,answer", '"two\nlines",Nile', "", bad)
    with pytest.raises(UserError, match=said):
        read_examples(path)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.json"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_told(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="the file is empty"):
        read_examples(tmp_path / name)


def test_a_header_alone_is_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is empty"):
        read_examples(write(tmp_path / "data.csv", "prompt,answer"))


def test_a_list_of_objects_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([GOOD, GOOD]))
    assert len(read_examples(path)) == 2
    path.write_text('[{"prompt": "?",\n "answer": }]')
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        read_examples(path)


def test_other_encodings_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + '\n{"prompt": "Köln"}'.encode("latin-1"))
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        read_examples(path)


def test_parquet_is_read_and_damage_told(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table = pd.DataFrame(
        [GOOD | {"options": None}, {"prompt": "?", "answer": "B", "options": ["A", "B"]}]
    )
    table.to_parquet(path)
    first, second = read_examples(path)
    assert (first.answer, first.options) == ("Nile", ())
    assert second.options == ("A", "B")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_examples(path)


def test_parquet_cells_are_read_as_what_they_are(tmp_path: Path) -> None:
    """Whole numbers beside a missing one stay whole, and exact beyond what a float holds."""
    path = tmp_path / "data.parquet"
    large = 2**53 + 1
    table = pa.table(
        {
            "instruction": ["a?", "b?", "c?"],
            "output": ["x", "y", "z"],
            "answer": pa.array([large, None, 0], pa.int64()),
            "input": pa.array([0.5, float("nan"), None]),
        }
    )
    pq.write_table(table, path)
    read = read_examples(path)
    assert [one.answer for one in read] == [str(large), "y", "0"]
    assert [one.prompt for one in read] == ["a?\n0.5", "b?", "c?"]
    bools = pa.table({"prompt": ["a?", "b?"], "answer": [True, False]})
    pq.write_table(bools, path)
    assert [one.answer for one in read_examples(path)] == ["true", "false"]
    structs = pa.table({"prompt": ["a?"], "answer": [{"text": ["x"]}]})
    pq.write_table(structs, path)
    with pytest.raises(UserError, match="line 1: answer must be text or a number, got dict"):
        read_examples(path)


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "prompt,answer,answer", "a?,x,y")
    with pytest.raises(UserError, match="line 1: two columns are named 'answer'"):
        read_examples(path)
    path = tmp_path / "data.parquet"
    column = pa.array(["x"])
    pq.write_table(pa.Table.from_arrays([column] * 3, ["prompt", "answer", "answer"]), path)
    with pytest.raises(UserError, match="two columns are named 'answer'"):
        read_examples(path)


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"known endings: \.jsonl"):
        read_examples(write(tmp_path / "data.txt", GOOD))


def test_split_is_by_subject_and_always_the_same(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{kind} {index}?", "answer": "x", "subject": f"subject {index}"}
        for index in range(60)
        for kind in ("what", "why")
    ]
    path = write(tmp_path / "data.jsonl", *rows)
    split = load_split(path, held_out=0.25)
    train = {one.subject for one in split.train}
    test = {one.subject for one in split.test}
    assert not train & test
    assert len(split.train) + len(split.test) == len(rows)
    assert 5 <= len(test) <= 25
    shuffled = load_split(write(tmp_path / "turned.jsonl", *rows[::-1]), held_out=0.25)
    assert {one.subject for one in shuffled.test} == test
    assert {one.task for one in split.train} == {"data"}


def test_more_held_out_contains_less(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {index}", "answer": "x"} for index in range(80)]
    path = write(tmp_path / "data.jsonl", *rows)
    small = {one.prompt for one in load_split(path, held_out=0.1).test}
    large = {one.prompt for one in load_split(path, held_out=0.4).test}
    assert small < large


def test_directory_with_two_splits(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl", {"prompt": "a?", "answer": "x"}, {"prompt": "b?", "answer": "x"}
    )
    write(tmp_path / "test.csv", "prompt,answer", "b?,x", "c?,x")
    split = load_split(tmp_path)
    assert [one.prompt for one in split.train] == ["a?", "b?"]
    # What is trained on is not tested.
    assert [one.prompt for one in split.test] == ["c?"]
    assert split.test[0].task == tmp_path.name


def test_directory_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs a file train\.jsonl"):
        load_split(tmp_path)


def test_too_little_to_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no examples are left to"):
        load_split(write(tmp_path / "data.jsonl", GOOD))


@pytest.mark.parametrize("source", ["arithmetics", "no/such/file.jsonl", "gone.csv", ""])
def test_unknown_source_lists_what_there_is(source: str) -> None:
    with pytest.raises(UserError, match="arithmetic, facts, false_premise"):
        load_examples(source)


def test_columns_are_handed_on(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "Q,A", "which?,Nile")
    with pytest.raises(UserError, match="no known format has the columns Q, A"):
        read_examples(path)
    columns = ColumnMapping.parse("prompt=Q,answer=A")
    assert read_examples(path, columns=columns)[0].answer == "Nile"


class Hub:
    """Stands in for the hub: one data set with two subsets."""

    files = ("README.md", "main/train-00000-of-00001.jsonl", "main/test-0.jsonl", "odd/train.jsonl")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []

    def list_repo_files(self, repo: str, *, revision: str | None, repo_type: str) -> list[str]:
        assert repo_type == "dataset"
        self.asked.append((repo, revision))
        return list(self.files)

    def hf_hub_download(self, repo: str, name: str, **_: Any) -> str:
        target = self.folder / name.replace("/", "-")
        return str(write(target, {"prompt": f"{name}?", "answer": "x"}))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    one = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.list_repo_files", one.list_repo_files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", one.hf_hub_download)
    return one


def test_hub_data_set_with_subset_and_revision(hub: Hub) -> None:
    split = load_split("someone/riddles@v2:main")
    assert [one.prompt for one in split.train] == ["main/train-00000-of-00001.jsonl?"]
    assert [one.prompt for one in split.test] == ["main/test-0.jsonl?"]
    assert split.train[0].task == "riddles"
    assert hub.asked[0] == ("someone/riddles", "v2")


def test_hub_data_set_with_several_subsets_asks_for_one(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"2 files for split 'train'.*someone/riddles:SUBSET"):
        load_split("someone/riddles")


def test_hub_data_set_without_that_subset(hub: Hub) -> None:
    with pytest.raises(UserError, match="0 files for split 'train'"):
        load_split("someone/riddles:none")


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    with pytest.raises(UserError, match="cannot get the data set 'a/b'"):
        load_split("a/b")


def test_narrow_floats_keep_their_own_digits(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    columns = {"prompt": ["a", "b"], "answer": pa.array([0.1, None], pa.float32())}
    pq.write_table(pa.table(columns), path)
    (_, first), (_, second) = parquet_rows(path)
    assert first["answer"] == 0.1
    assert second["answer"] is None


FORMS = ("São Paulo", "são paulo", "Sa\u0303o Paulo", "São\u00a0Paulo ", "S\u200bão  Paulo")
"""Ways to write one name."""


@pytest.mark.parametrize("form", FORMS)
def test_a_subject_that_is_trained_on_is_not_tested_however_it_is_written(
    form: str, tmp_path: Path
) -> None:
    write(tmp_path / "train.jsonl", {"prompt": "a?", "answer": "x", "subject": FORMS[0]})
    rows = [
        {"prompt": f"{index}?", "answer": "x", "subject": subject}
        for index, subject in enumerate((form, "Sao Paulo"))  # another spelling is another name
    ]
    write(tmp_path / "test.jsonl", *rows)
    assert [one.subject for one in load_split(tmp_path).test] == ["Sao Paulo"]


def test_all_ways_to_write_a_subject_are_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{index} {form}?", "answer": "x", "subject": f"{form} {index}"}
        for index in range(40)
        for form in FORMS
    ]
    split = load_split(write(tmp_path / "data.jsonl", *rows), held_out=0.3)
    sides = [{one.subject.split()[-1] for one in side} for side in (split.train, split.test)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {str(index) for index in range(40)}
    turned = load_split(write(tmp_path / "turned.jsonl", *rows[::-1]), held_out=0.3)
    assert {one.subject for one in turned.test} == {one.subject for one in split.test}
