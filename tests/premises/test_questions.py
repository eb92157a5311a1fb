"""Questions, their false objects, and the files that they come from."""

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.premises import (
    Fact,
    Premises,
    Relation,
    Template,
    list_relations,
    load_premises,
    load_relation,
)
from interp.premises.registry import data_dir

YAML = """\
name: toys
templates:
  a: "Why does {subject} like {object}?"
  b: "Since when is {object} liked by {subject}?"
cloze: "{subject} likes"
direct: "What does {subject} like?"
"""
ROW_COUNTS = {
    "capitals": 184,
    "currencies": 195,
    "films": 1500,
    "headquarters": 703,
    "landmarks": 746,
    "languages": 196,
    "nobel": 937,
    "products": 486,
}


def relation_of(facts: list[Fact], **changes: Any) -> Relation:
    keywords: dict[str, Any] = {
        "name": "toys",
        "description": "",
        "subject_kind": "child",
        "object_kind": "toy",
        "templates": (
            Template("a", "Why does {subject} like {object}?"),
            Template("b", "Since when is {object} liked by {subject}?"),
        ),
        "search_templates": ("a",),
        "cloze": "{subject} likes",
        "direct": "What does {subject} like?",
        "facts": tuple(facts),
    }
    return Relation(**(keywords | changes))


def premises_of(facts: list[Fact], *, seed: int = 0, **changes: Any) -> Premises:
    relation = relation_of(facts, **changes)
    return Premises(relation, relation.facts, relation.template_names, seed)


def write(folder: Path, rows: str | bytes, yaml: str = YAML) -> Path:
    file = folder / "toys.csv"
    file.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    file.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    return file


# Questions


def test_every_fact_through_every_template_with_one_false_object():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars", ("autos",))])
    questions = premises.questions()
    assert len(premises) == len(questions) == 4
    assert [(q.subject, q.template) for q in questions] == [
        ("Ann", "a"),
        ("Ann", "b"),
        ("Bob", "a"),
        ("Bob", "b"),
    ]
    assert [q.false_object for q in questions] == ["cars", "cars", "balls", "balls"]
    assert questions[3].true_names == ("cars", "autos")
    assert questions[0].relation == "toys"


def test_the_three_kinds_by_hand():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars")])
    question = premises.questions()[1]
    false = premises.fill(question, "false")
    assert false.text == "Since when is cars liked by Ann?"
    assert (false.object, false.subject) == ((14, 18), (28, 31))
    assert premises.fill(question, "twin").text == "Since when is balls liked by Ann?"
    masked = premises.fill(question, "masked")
    assert masked.text[slice(*masked.object)] == "XXXX"
    assert premises.cloze(question) == "Ann likes"
    assert premises.direct(premises.facts[1]) == "What does Bob like?"


def test_years():
    facts = [Fact("Jaws", "1975"), Fact("Alien", "1979")]
    before = premises_of(facts, false_object="previous_year")
    after = premises_of(facts, false_object="next_year")
    assert [before.false_object(fact) for fact in facts] == ["1974", "1978"]
    assert [after.false_object(fact) for fact in facts] == ["1976", "1980"]


def test_a_year_that_is_also_true_is_no_false_object():
    fact = Fact("Jaws", "1975", ("1974",))
    with pytest.raises(UserError, match="1974 is also true"):
        premises_of([fact], false_object="previous_year").false_object(fact)


def test_false_object_is_never_true_in_any_spelling():
    facts = [
        Fact("Ann", "balls", ("Marbles", "CARS")),
        Fact("Bob", "BALLS"),
        Fact("Cid", "marbles"),
        Fact("Dan", "toy cars"),
        Fact("Eve", "kites"),
        Fact("Dan's kites", "balls"),
    ]
    for seed in range(50):
        premises = premises_of(facts, seed=seed)
        assert premises.false_object(facts[0]) == "kites"
        assert premises.false_object(facts[1]) in {"marbles", "toy cars", "kites"}
        assert premises.false_object(facts[5]) != "kites"  # the subject names them


def test_no_other_object():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "Balls")])
    with pytest.raises(UserError, match="no false object for 'Ann'"):
        premises.questions()


def test_draw_depends_on_neither_order_nor_other_facts():
    facts = [Fact(f"s{i}", f"o{i}") for i in range(30)]
    premises = premises_of(facts)
    drawn = {fact.subject: premises.false_object(fact) for fact in facts}
    turned = premises.with_facts(reversed(facts))
    assert {fact.subject: turned.false_object(fact) for fact in facts} == drawn
    fewer = premises.with_facts(facts[:20])
    still_there = [f for f in facts[:20] if int(drawn[f.subject][1:]) < 20]
    assert len(still_there) > 5
    for fact in still_there:
        assert fewer.false_object(fact) == drawn[fact.subject]
    others = [premises_of(facts, seed=1).false_object(fact) for fact in facts]
    assert others != list(drawn.values())


def test_draw_follows_how_often_an_object_is_true():
    # 1000 facts: 600 balls, 300 cars, 100 kites. A ball's false object is a car 3 times in 4.
    objects = ["balls"] * 600 + ["cars"] * 300 + ["kites"] * 100
    facts = [Fact(f"s{i}", name) for i, name in enumerate(objects)]
    premises = premises_of(facts)
    drawn = Counter(premises.false_object(fact) for fact in facts[:600])
    assert drawn["balls"] == 0
    assert drawn["cars"] / 600 == pytest.approx(0.75, abs=0.06)


def test_parts_of_premises():
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars"), Fact("Cid", "kites")])
    assert premises.first(2).subjects == ("Ann", "Bob")
    assert len(premises.with_templates(["b"])) == 3
    assert premises.with_templates(["b"]).questions()[0].false_object == (
        premises.questions()[0].false_object
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda premises: premises.first(0), "first 0 facts"),
        (lambda premises: premises.with_facts([]), "no facts"),
        (lambda premises: premises.with_templates([]), "no templates"),
        (lambda premises: premises.with_templates(["c"]), "no template 'c'; known: a, b"),
        (lambda premises: premises.with_templates(["a", "a"]), "named twice"),
        (lambda premises: premises.with_facts([Fact("A", "x"), Fact("A", "y")]), "occurs twice"),
        (lambda premises: premises.fact("Zoe"), "no fact about 'Zoe'"),
    ],
)
def test_impossible_premises(change, fault):
    premises = premises_of([Fact("Ann", "balls"), Fact("Bob", "cars")])
    with pytest.raises(UserError) as raised:
        change(premises)
    assert fault in str(raised.value)


# Files


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
        ("subject,object\nAnn,balls\nBob, \n", 3, "object is empty"),
        ("subject,object\n,balls\n", 2, "subject is empty"),
        ("subject,object\nAnn,balls\n\nANN,cars\n", 4, "already stands in line 2"),
        ("subject,object\nAnn,balls,red\n", 2, "3 cells, but the header names 2"),
        ("subject,object\nAnn\n", 2, "1 cells"),
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
        ("capital", "unknown relation 'capital'; known: capitals, currencies"),
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(), st.text(st.sampled_from("ab:-[]{}&*!|>?#\n \t'\"%@"))))
def test_any_yaml_gives_a_clear_error(tmp_path, content):
    file = write(tmp_path, "subject,object\nAnn,balls\nBob,cars\n")
    file.with_suffix(".yaml").write_text(content, encoding="utf-8", newline="")
    with pytest.raises(UserError, match=r"toys\.yaml"):
        load_relation(file)


# What ships


def test_the_shipped_relations():
    assert {name: len(load_relation(name).facts) for name in list_relations()} == ROW_COUNTS


def test_the_readme_states_the_row_counts():
    readme = (data_dir() / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", readme, re.MULTILINE)) == {
        name: f"{count:,}" for name, count in ROW_COUNTS.items()
    }


@pytest.mark.parametrize("name", ROW_COUNTS)
def test_shipped_questions_can_be_filled(name):
    premises = load_premises(name)
    relation = premises.relation
    assert relation.name == name
    assert len(relation.templates) == 4
    assert len(relation.search_templates) == 2
    assert relation.source
    assert relation.licence
    for question in premises.questions():
        fact = premises.fact(question.subject)
        assert question.false_object.casefold() not in {n.casefold() for n in fact.true_names}
        filled = premises.fill(question, "false")
        assert filled.text[slice(*filled.object)] == question.false_object
        assert filled.text[slice(*filled.subject)] == question.subject
    assert not all(t.text.rstrip("?").endswith("{object}") for t in relation.templates)
    assert not any(t.text.startswith("{subject}") for t in relation.templates)


@pytest.mark.parametrize("name", ROW_COUNTS)
def test_no_shipped_subject_gives_its_object_away(name):
    for fact in load_relation(name).facts:
        words = rf"(?<!\w){re.escape(fact.object)}(?!\w)"
        assert not re.search(words, fact.subject, re.IGNORECASE), fact


def test_some_shipped_facts():
    capitals = {fact.subject: fact for fact in load_relation("capitals").facts}
    assert capitals["Paris"].object == "France"
    assert capitals["Astana"].object == "Kazakhstan"
    assert "UK" in capitals["London"].also_true
    films = load_premises("films")
    assert films.false_object(films.fact("Jurassic Park")) == "1992"
    nobel = load_premises("nobel")
    assert nobel.false_object(nobel.fact("Albert Einstein")) == "1922"
    assert "Marie Curie" not in nobel.subjects  # two prizes


def test_capitals_come_by_population():
    populations = [int(dict(fact.fields)["population"]) for fact in load_relation("capitals").facts]
    assert populations == sorted(populations, reverse=True)


def test_tables_are_plain_csv():
    for name in list_relations():
        file = data_dir() / "relations" / f"{name}.csv"
        with file.open(encoding="utf-8", newline="") as handle:
            assert len(list(csv.DictReader(handle))) == ROW_COUNTS[name]
        assert b"\r" not in file.read_bytes()


def test_neutral_sentences():
    lines = (data_dir() / "neutral.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 40
    assert all(20 <= len(line.split()) <= 40 for line in lines)
