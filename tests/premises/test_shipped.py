"""The relations that ship: their size, their facts, their questions."""

import csv
import re

import pytest

from interp.premises import list_relations, load_premises, load_relation
from interp.premises.registry import data_dir
from interp.premises.relation import names

ROW_COUNTS = {
    "animals": 124,
    "authors": 150,
    "capitals": 184,
    "cities": 150,
    "clubs": 122,
    "continents": 181,
    "currencies": 195,
    "dishes": 150,
    "films": 1500,
    "headquarters": 703,
    "instruments": 137,
    "landmarks": 746,
    "languages": 196,
    "myths": 117,
    "native_languages": 150,
    "nobel": 937,
    "products": 486,
    "sports": 150,
    "state_capitals": 49,
    "us_cities": 150,
}


def test_the_shipped_relations():
    assert {name: len(load_relation(name).facts) for name in list_relations()} == ROW_COUNTS


def test_the_readme_states_the_row_counts():
    readme = (data_dir() / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", readme, re.MULTILINE))
    tasks = {name for name in rows if name.startswith("faithlens_")}  # of another table
    assert {name: rows[name] for name in rows.keys() - tasks} == {
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


def test_every_relation_asks_for_its_subjects():
    for name in list_relations():
        premises = load_premises(name, limit=20)
        for fact in premises.facts:
            text = premises.reverse(fact)
            assert names(text, fact.object)
            assert not names(text, fact.subject)


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
