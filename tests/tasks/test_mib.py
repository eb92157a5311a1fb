"""MIB's tasks, in small files written by hand with its columns, become pairs; bad rows are told."""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.tasks import read_pairs
from interp.tasks.mib import is_mib, pair_fields

IOI: dict[str, Any] = {
    "template": "Then, {name_A} and {name_B} had a drink. {name_C} gave a cup to",
    "metadata": {"subject": "Ann", "indirect_object": "Tom", "object": "cup", "random_c": "Eve"},
    "prompt": "Then, Ann and Tom had a drink. Ann gave a cup to",
    "choices": ["Ann", "Tom"],
    "answerKey": 1,
    "s2_io_flip_counterfactual": {
        "prompt": "Then, Ann and Tom had a drink. Tom gave a cup to",
        "choices": ["Ann", "Tom"],
        "answerKey": 0,
    },
    "abc_counterfactual": {
        "prompt": "Then, Eve and Bob had a drink. Jim gave a cup to",
        "choices": ["Eve", "Bob"],
        "answerKey": 0,
    },
}
MCQA: dict[str, Any] = {
    "prompt": "A box is red. What color is a box?\nA. red\nB. blue\nAnswer:",
    "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
    "answerKey": 0,
    "symbol_counterfactual": {
        "prompt": "A box is red. What color is a box?\nQ. red\nX. blue\nAnswer:",
        "choices": {"label": ["Q", "X"], "text": ["red", "blue"]},
        "answerKey": 0,
    },
    "color_counterfactual": {
        "prompt": "A box is blue. What color is a box?\nA. red\nB. blue\nAnswer:",
        "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
        "answerKey": 1,
    },
}
ARITHMETIC: dict[str, Any] = {
    "prompt": "Q: How much is 12 plus 30? A: ",
    "template": "Q: How much is {a} plus {b}? A: ",
    "label": 42,
    "operator": "+",
    "random_counterfactual": {"prompt": "Q: How much is 55 plus 21? A: ", "label": 76},
}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "answers", "corrupted"),
    [
        (IOI, ("Tom", "Ann"), "Then, Ann and Tom had a drink. Tom gave a cup to"),
        (MCQA, ("A", "Q"), "A box is red. What color is a box?\nQ. red\nX. blue\nAnswer:"),
        (ARITHMETIC, ("42", "76"), "Q: How much is 55 plus 21? A: "),
    ],
)
def test_each_task_by_its_own_counterfactual(
    row: dict[str, Any], answers: tuple[str, str], corrupted: str, tmp_path: Path
) -> None:
    (pair,) = read_pairs(lines(tmp_path / "task.jsonl", row))
    assert (pair.answer, pair.wrong_answer) == answers
    assert (pair.clean, pair.corrupted) == (row["prompt"], corrupted)
    assert pair.template == row.get("template", "")
    frame = pd.DataFrame([row])
    frame.to_parquet(tmp_path / "task.parquet")
    assert read_pairs(tmp_path / "task.parquet").items == (pair,)
    frame.to_csv(tmp_path / "task.csv", index=False)  # nested columns as Python writes them
    assert read_pairs(tmp_path / "task.csv").items == (pair,)
    (tmp_path / "task.json").write_text(json.dumps([row]))
    assert read_pairs(tmp_path / "task.json").items == (pair,)


def test_another_counterfactual(tmp_path: Path) -> None:
    path = lines(tmp_path / "task.jsonl", MCQA)
    (pair,) = read_pairs(path, counterfactual="color_counterfactual")
    assert (pair.answer, pair.wrong_answer) == ("A", "B")
    with pytest.raises(UserError, match=r"line 1: no column 'noun_counterfactual'; found symbol"):
        read_pairs(path, counterfactual="noun_counterfactual")


def test_names_may_be_missing_and_an_equals_sign_takes_no_space() -> None:
    without = {name: value for name, value in IOI.items() if name != "metadata"}
    found = pair_fields(without)
    assert found is not None
    assert (found["answer"], found["wrong_answer"]) == ("Tom", "Ann")
    sums = {"prompt": "12+30=", "label": "42"}
    found = pair_fields({**sums, "random_counterfactual": {"prompt": "1+1=", "label": 2}})
    assert found is not None
    assert found["gap"] == ""


def test_rows_without_another_answer_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    none = {**ARITHMETIC, "random_counterfactual": None}
    empty = {**ARITHMETIC, "random_counterfactual": {"prompt": None, "label": None}}
    same = {**ARITHMETIC, "random_counterfactual": {"prompt": "Q: 41 plus 1? A: ", "label": 42}}
    path = lines(tmp_path / "sums.jsonl", none, ARITHMETIC, empty, same, ARITHMETIC)
    with caplog.at_level(logging.WARNING):
        assert len(read_pairs(path)) == 2
    assert "3 rows have no counterfactual" in caplog.text
    assert len(read_pairs(path, limit=1)) == 1
    with pytest.raises(UserError, match="there are no pairs"):
        read_pairs(lines(tmp_path / "none.jsonl", none))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": 2}, "answerKey of the row is 2"),
        ({"answerKey": "B"}, "answerKey of the row is 'B'"),
        ({"answerKey": True}, "answerKey of the row is True"),
        ({"choices": "none"}, "choices is 'none', but must be JSON"),
        ({"choices": {"text": ["red"]}}, "must be a list of labels"),
        ({"choices": {"label": ["", "B"]}}, "the answer of the row is ''"),
        ({"prompt": 3}, "the clean text is 3"),
        ({"prompt": " "}, "clean is empty"),
        ({"symbol_counterfactual": "x"}, "symbol_counterfactual is 'x'"),
        ({"symbol_counterfactual": [1]}, "must hold a prompt and its answer"),
        ({"symbol_counterfactual": {"prompt": "Q?"}}, "the answer of symbol_counterfactual"),
    ],
)
def test_a_bad_row_is_told_by_its_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = lines(tmp_path / "task.jsonl", MCQA, {**MCQA, **change})
    with pytest.raises(UserError) as error:
        read_pairs(path)
    assert message in str(error.value)
    assert f"{path}, line 2:" in str(error.value)
    assert "\n" not in str(error.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["prompt", "label", "choices", "answerKey"]), inner)
    ),
    max_leaves=6,
)


@given(st.sampled_from([IOI, MCQA, ARITHMETIC]), st.data())
def test_any_row_is_a_pair_or_a_line_of_complaint(row: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(row)))
    changed = {**row, name: data.draw(values)}
    assert is_mib(changed)
    found, complaint = None, ""
    try:
        found = pair_fields(changed)
    except UserError as error:
        complaint = str(error)
    assert "\n" not in complaint
    if found is not None:
        assert found["answer"] != found["wrong_answer"]
        assert all(isinstance(text, str) for text in found.values())


@pytest.mark.parametrize(
    "choices",
    ["['Mary' 'John']", "('Mary', 'John')", "array(['Mary', 'John'], dtype=object)"],
)
@pytest.mark.parametrize("key", ["0", "0.0"])
def test_choices_as_numpy_and_pandas_write_them(choices: str, key: str, tmp_path: Path) -> None:
    other = "{'prompt': 'When Al and Bo', 'choices': ['Bo' 'Al'], 'answerKey': 0}"
    row = {"prompt": "When John", "choices": choices, "answerKey": key, "x_counterfactual": other}
    pd.DataFrame([row]).to_csv(tmp_path / "task.csv", index=False)
    (pair,) = read_pairs(tmp_path / "task.csv")
    assert (pair.answer, pair.wrong_answer) == ("Mary", "Bo")


def test_nested_columns_of_parquet_in_a_csv(tmp_path: Path) -> None:
    pd.DataFrame([MCQA]).to_parquet(tmp_path / "task.parquet")
    pd.read_parquet(tmp_path / "task.parquet").to_csv(tmp_path / "task.csv", index=False)
    assert "array(['A', 'B'], dtype=object)" in (tmp_path / "task.csv").read_text()
    assert read_pairs(tmp_path / "task.csv")[0] == read_pairs(tmp_path / "task.parquet")[0]


def test_whole_numbers_that_pandas_wrote(tmp_path: Path) -> None:
    rows = [ARITHMETIC, {**ARITHMETIC, "label": None, "random_counterfactual": None}]
    pd.DataFrame(rows).to_csv(tmp_path / "sums.csv", index=False)
    assert "42.0" in (tmp_path / "sums.csv").read_text()
    (pair,) = read_pairs(tmp_path / "sums.csv")
    assert (pair.answer, pair.wrong_answer) == ("42", "76")
