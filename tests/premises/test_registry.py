"""The files that a relation comes from: one's own, and faulty ones."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.premises import Fact, load_premises, load_relation

YAML = """\
name: toys
templates:
  a: "Why does {subject} like {object}?"
  b: "Since when is {object} liked by {subject}?"
cloze: "{subject} likes"
direct: "What does {subject} like?"
"""


def write(folder: Path, rows: str | bytes, yaml: str = YAML) -> Path:
    file = folder / "toys.csv"
    file.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    file.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    return file


def test_ones_own_relation(tmp_path):
    file = write(
        tmp_path,
        "\ufeffsubject,also_true,object,age\r\n Ann , round things; ;spheres,balls,7\r\n\r\n"
        '"Bob, the {subject}",,cars,\r\n',
    )
    relation = load_relation(file)
    assert relation.facts[0] == Fact(
        "Ann", "balls", ("round things", "spheres"), fields=(("age", "7"),)
    )
    assert relation.facts[1].subject == "Bob, the {subject}"
    assert relation.search_templates == ("a",)  # the first half by default
    assert load_relation(str(file)) == relation
    assert load_relation(file.with_suffix(".yaml")) == relation
    assert len(load_premises(file, limit=1)) == 2
    moved = file.with_suffix(".yaml").rename(tmp_path / "other.yml")
    assert load_relation(file, templates=moved) == relation


@pytest.mark.parametrize(
    ("rows", "line", "fault"),
    [
        ("", 1, "no column 'subject'"),
        ("subject,thing\nAnn,balls\n", 1, "no column 'object'"),
        ("subject,object,object\n", 1, "two columns are named 'object'"),
        ("subject,object,also true\n", 1, "the column 'also true' is to be named 'also_true'"),
        ("subject,object,Also-True\n", 1, "'Also-True' is to be named 'also_true'"),
        ("subject,object\nAnn,balls\nBob, \n", 3, "object is empty"),
        ("subject,object\n,balls\n", 2, "subject is empty"),
        ("subject,object\nAnn,balls\n\nANN,cars\n", 4, "already in line 2"),
        ("subject,object\nAnn,balls,red\n", 2, "3 cells, but the header names 2"),
        ("subject,object\nAnn\n", 2, "1 cells"),
        ("subject;object\nAnn;balls\n", 1, "parted by semicolons"),
        ("subject,object\nJo\u00e3o,x\nJoa\u0303o,y\n", 3, "is already in line 2"),
        ("subject,object\nAnn Lee,x\nann\u00a0lee,y\n", 3, "is already in line 2"),
        ("subject,object,also_true\nAnn,balls,[red]\n", 2, "also_true begins and ends like a list"),
        ("subject,object,also_true\nAnn,balls,[[1]]\n", 2, "also_true holds [1], but must hold"),
        (
            'subject,object,also_true\nAnn,balls,"[""a\\nb""]"\n',
            2,
            "also_true holds a line break",
        ),
        ("subject,object\n\u200b,balls\n", 2, "subject is empty"),
        ('subject,object\n"Ann,balls\n', 2, "not valid CSV"),
        ('subject,object\n"A\nnn",balls\nBob,cars\n', 2, "line break"),
        (b"subject,object\nAnn,balls\nBj\xf6rn,cars\n", 3, "not UTF-8"),
    ],
)
def test_faulty_table(tmp_path, rows, line, fault):
    file = write(tmp_path, rows)
    with pytest.raises(UserError) as raised:
        load_relation(file)
    assert str(raised.value).startswith(f"{file}: line {line}: ")
    assert fault in str(raised.value)


def test_table_without_rows(tmp_path):
    with pytest.raises(UserError, match="holds no facts"):
        load_relation(write(tmp_path, "subject,object\n"))


@pytest.mark.parametrize(
    ("yaml", "fault"),
    [
        ("", "not a mapping"),
        ("- name", "not a mapping"),
        ("name: [", "line 1: not valid YAML"),
        (YAML + "lang: en\n", "unknown key 'lang'; known: name, description"),
        (YAML.replace("cloze", "#"), "missing key 'cloze'"),
        (YAML + "mask: 0000\n", "mask must be text, got 0; put it in quotes"),
        (YAML + "name: again\n", "line 7: 'name' twice"),
        (YAML.replace("  b:", "  a:"), "line 4: 'a' twice"),
        (YAML + "search_templates: a\n", "must be a list"),
        (YAML + "search_templates: [c]\n", "'c', which is no template"),
        (YAML + "false_object: none\n", "known: another, previous_year, next_year"),
        (YAML.replace("like {object}", "like it"), "{object} exactly once"),
        (YAML.replace("like {object}", "like {object} {size}"), "no such column"),
        (YAML.replace("name: toys", "name: Toys!"), "lower-case"),
        ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_faulty_sentences(tmp_path, yaml, fault):
    file = write(tmp_path, "subject,object\nAnn,balls\nBob,cars\n", yaml)
    with pytest.raises(UserError) as raised:
        load_relation(file)
    assert str(raised.value).startswith(f"{file.with_suffix('.yaml')}: ")
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_object_that_is_no_year(tmp_path):
    file = write(
        tmp_path, "subject,object\nAnn,1990\nBob,MCM\n", YAML + "false_object: next_year\n"
    )
    with pytest.raises(UserError, match=r"toys\.csv: line 3: object 'MCM' is not a year"):
        load_relation(file)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("capital", "unknown relation 'capital'; known: animals, authors, capitals"),
        ("nowhere.csv", "nowhere.yaml: no such file"),
        ("facts.txt", "give a known name, or a .csv or .yaml file"),
        ("../capitals", "give a known name, or a .csv or .yaml file"),
        ("", "unknown relation ''"),
    ],
)
def test_unknown_relation(name, fault):
    with pytest.raises(UserError) as raised:
        load_relation(name)
    assert fault in str(raised.value)


def test_missing_table_beside_the_sentences(tmp_path):
    file = write(tmp_path, "")
    file.unlink()
    with pytest.raises(UserError, match=r"toys\.csv: no such file"):
        load_relation(file.with_suffix(".yaml"))


CSV_TEXT = st.text(st.sampled_from('ab,;"\n\r \t\x00é{}')).map(
    lambda text: ("subject,object\n" + text).encode()
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(), CSV_TEXT))
def test_any_bytes_give_facts_or_a_clear_error(tmp_path, content):
    file = write(tmp_path, content)
    try:
        relation = load_relation(file)
    except UserError as error:
        message = str(error)
        assert "toys.csv" in message
        assert "\n" not in message
    else:
        assert all(fact.subject and fact.object for fact in relation.facts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.text(), st.text(st.sampled_from("ab:-[]{}&*!|>?#\n \t'\"%@"))))
def test_any_yaml_gives_a_clear_error(tmp_path, content):
    file = write(tmp_path, "subject,object\nAnn,balls\nBob,cars\n")
    file.with_suffix(".yaml").write_text(content, encoding="utf-8", newline="")
    with pytest.raises(UserError, match=r"toys\.yaml"):
        load_relation(file)


@pytest.mark.parametrize(
    "cell",
    [
        "River Nile; Nil",
        '"[""River Nile"", ""Nil""]"',
        "['River Nile' 'Nil' None]",
        "\"['River Nile'\n 'Nil']\"",
        "\"('River\u00a0Nile', 'Nil')\"",
        "\"array(['River Nile', 'Nil'], dtype=object)\"",
    ],
)
def test_further_answers_in_a_cell(tmp_path, cell):
    file = write(tmp_path, f"subject,object,also_true\nCairo,Nile,{cell}\nBonn,Rhine,\n")
    assert [fact.also_true for fact in load_relation(file).facts] == [("River Nile", "Nil"), ()]


def test_columns_that_excel_leaves_and_what_is_not_seen_in_a_cell(tmp_path):
    file = write(
        tmp_path,
        "subject,object,land,,\n\u200eAnn\u00a0 Lee ,New  Zealand\u200b,A\u00a0B,,\nBob,cars,,,\n",
    )
    facts = load_relation(file).facts
    assert facts[0] == Fact("Ann Lee", "New Zealand", fields=(("land", "A B"),))
    assert facts[1] == Fact("Bob", "cars", fields=(("land", ""),))
