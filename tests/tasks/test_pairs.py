"""Files of pairs: what is written is read back, and every broken line is told by its number."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.tasks import Pair, Pairs, read_pairs

GOOD: dict[str, Any] = {
    "clean": "Paris is in",
    "corrupted": "Rome is in",
    "answer": " France",
    "wrong_answer": " Italy",
}
in_a_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip)


@st.composite
def pairs(draw: st.DrawFn, names: tuple[str, ...]) -> Pair:
    texts = draw(words), draw(words)

    def span(text: str) -> tuple[int, int]:
        start = draw(st.integers(0, len(text) - len(text.lstrip())))
        return start, draw(st.integers(len(text.rstrip()), len(text)))

    answer = draw(words)
    return Pair(
        *texts,
        answer,
        draw(words.filter(lambda wrong: wrong != answer)),
        {name: (span(texts[0]), span(texts[1])) for name in names},
        draw(st.one_of(st.just(""), words)),
        draw(st.one_of(st.just(""), words)),
        draw(st.one_of(st.none(), st.just(""), words)),
    )


@in_a_directory
@given(data=st.data(), names=st.lists(words, max_size=2, unique=True))
def test_written_pairs_are_read_back(data: st.DataObject, names: list[str], tmp_path: Path) -> None:
    written = data.draw(st.lists(pairs(tuple(names)), min_size=1, max_size=4))
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(pair.row(), ensure_ascii=data.draw(st.booleans())) for pair in written]
    path.write_bytes("\n\n".join(lines).encode())
    assert list(read_pairs(path)) == written
    assert list(read_pairs(path, limit=1)) == written[:1]


@in_a_directory
@given(line=st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "replace"))))
@example(line=b"null")
def test_any_other_line_is_a_users_mistake(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line.replace(b"\n", b" ") + b"\n")
    if line.strip():
        with pytest.raises(UserError, match="line 2: "):
            read_pairs(path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 20), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["clean", "corrupted", "x"]), inner),
    ),
)


@in_a_directory
@given(key=st.sampled_from([*GOOD, "spans", "group", "template", "x"]), value=JSON)
def test_any_value_is_read_or_told(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD | {key: value}))
    said = ""
    try:
        assert len(read_pairs(path)) == 1
    except UserError as error:
        said = str(error)
    assert not said or ("line 1: " in said and "\n" not in said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clean": " "}, "clean is empty"),
        ({"answer": 3}, "answer is 3, but must be text"),
        ({"wrong_answer": " France"}, "answer and wrong_answer are both ' France'"),
        ({"anser": "x"}, "unknown key 'anser'; known: clean, corrupted, answer"),
        ({"spans": [1, 2]}, "spans must be an object"),
        ({"spans": {"city": [0, 99]}}, r"\[0, 99\] holds no word of the clean text, which has 11"),
        ({"spans": {"city": [5, 6]}}, "holds no word of the clean text"),
        ({"spans": {"city": {"clean": [0, 5]}}}, "must be .start, end. in characters"),
        ({"spans": {"city": [0, True]}}, "must be .start, end. in characters"),
        ({"group": "\ud800"}, "surrogate"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(UserError, match=f"pairs.jsonl, line 2: .*{said}"):
        read_pairs(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({key: GOOD[key] for key in list(GOOD)[:3]}))
    with pytest.raises(UserError, match="line 1: 'wrong_answer' is missing"):
        read_pairs(path)


def test_files_without_pairs_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="there are no pairs"):
        read_pairs(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")


def test_every_pair_has_the_same_spans() -> None:
    with_span = Pair(**GOOD, spans={"city": ((0, 5), (0, 4))})
    with pytest.raises(UserError, match=r"pair 1 has the spans \(none\), the first pair city"):
        Pairs((with_span, Pair(**GOOD)))


def test_groups_default_to_each_pair_alone() -> None:
    pairs = Pairs((Pair(**GOOD), Pair(**GOOD, group="x"), Pair(**GOOD)))
    assert pairs.groups == ("pair 0", "x", "pair 2")
    assert pairs.take([1]).groups == ("x",)
    assert pairs.take([True, False, True]).groups == ("pair 0", "pair 1")
    with pytest.raises(UserError, match="mask of 2 entries for 3"):
        pairs.take([True, False])


def test_the_example_in_the_docs_is_a_pair(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "patching.md"
    example = page.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    (tmp_path / "pairs.jsonl").write_text(example)
    pair = read_pairs(tmp_path / "pairs.jsonl")[0]
    assert pair.clean[slice(*pair.spans["city"][0])] == "Paris"
    assert pair.corrupted[slice(*pair.spans["city"][1])] == "Rome"


def test_a_gap_is_kept_and_written_only_where_it_is_said(tmp_path: Path) -> None:
    said = Pair(**GOOD, gap="")
    assert said.row()["gap"] == ""
    assert "gap" not in Pair(**GOOD).row()  # as files were written before there were gaps
    file = tmp_path / "pairs.jsonl"
    rows = [{**GOOD, "gap": gap} for gap in ("", None)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [pair.gap for pair in read_pairs(file)] == ["", None]
    file.write_text(json.dumps({**GOOD, "gap": 3}))
    with pytest.raises(UserError, match="line 1: gap is 3, but must be text"):
        read_pairs(file)


@pytest.mark.parametrize("name", ["clean", "answer", "group", "gap"])
def test_what_is_no_text_is_told(name: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({**GOOD, name: 7}))
    with pytest.raises(UserError, match=f"line 1: {name} is 7, but must be text"):
        read_pairs(file)


def test_an_empty_cell_of_a_csv_is_not_given(tmp_path: Path) -> None:
    header = "clean,corrupted,answer,wrong_answer,gap,group,template,spans,\n"
    rows = "Paris is in,Rome is in,France,Italy,,,,,\nOne is,Two is,1,2, ,numbers,is,,\n"
    (tmp_path / "pairs.csv").write_text(header + rows)
    first, second = read_pairs(tmp_path / "pairs.csv")
    assert first == Pair("Paris is in", "Rome is in", "France", "Italy")
    assert (second.gap, second.group, second.template) == (" ", "numbers", "is")
    (tmp_path / "pairs.csv").write_text("clean,corrupted,answer,wrong_answer\nParis,Rome,,Italy\n")
    with pytest.raises(UserError, match="line 2: answer is empty"):
        read_pairs(tmp_path / "pairs.csv")
