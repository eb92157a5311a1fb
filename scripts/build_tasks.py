"""Builds the task sets under data/tasks: arithmetic, facts, and false premises with corrections.

    python scripts/build_tasks.py

Everything is made from our own templates (data/tasks/templates.yaml) and the tables in
data/relations; the same seed gives the same files, byte for byte. The two splits of a set share no
subject: persons and things of the word problems, and subjects, objects, options and false objects
of the facts, are of one split only. The splits of `facts` and `false_premise` part the entities in
the same way, so that sets can be mixed.
"""

import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from interp.premises import Fact, Premises, load_premises
from interp.premises.questions import Question

Row = dict[str, Any]

TASKS = Path(__file__).resolve().parent.parent / "data" / "tasks"
SPLITS = ("train", "test")
TEST_SHARE = 0.3
"""Share of the countries, and of the names and things of the word problems, in the test split."""

N_PROBLEMS = {"train": 840, "test": 210}


@dataclass(frozen=True)
class Problem:
    """A word problem: text, the numbers' ranges, and its steps as (left, operator, right).

    A step's sides are slots of the text, plain numbers, or `first`, `second` for the results of the
    steps before it. Every result must be a whole number above zero.
    """

    name: str
    text: str
    ranges: dict[str, list[int]]
    steps: list[tuple[str, ...]]


@dataclass(frozen=True)
class Wording:
    """How a relation's facts are put: as a yes-or-no question, denied and affirmed."""

    facts: int
    """How many of the relation's facts are used, the best known first."""
    asks: str
    corrects: str
    affirms: str


with (TASKS / "templates.yaml").open(encoding="utf-8") as _file:
    _TEMPLATES = yaml.safe_load(_file)
PERSONS, THINGS = _TEMPLATES["persons"].split(), _TEMPLATES["things"].split()
PROBLEMS = tuple(
    Problem(name, one["text"], one["numbers"], [tuple(step.split()) for step in one["steps"]])
    for name, one in _TEMPLATES["problems"].items()
)
WORDINGS = {name: Wording(**one) for name, one in _TEMPLATES["wordings"].items()}
LETTERS = "ABCD"


def main(out: Path = TASKS, seed: int = 0) -> None:
    """Write train.jsonl and test.jsonl of every set.

    Args:
        out: directory that receives one directory for each set.
        seed: decides every draw.
    """
    sides = split_facts(seed)
    write(out / "arithmetic", arithmetic(seed))
    write(out / "facts", apart(facts(sides, seed)))
    write(out / "false_premise", apart(false_premises(sides)))


def arithmetic(seed: int) -> dict[str, list[Row]]:
    """Word problems of one to three steps; the templates take turns."""
    rng = random.Random(f"{seed} arithmetic")
    persons, things = halves(PERSONS, rng), halves(THINGS, rng)
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        rows: dict[str, Row] = {}
        while len(rows) < N_PROBLEMS[split]:
            template = PROBLEMS[len(rows) % len(PROBLEMS)]
            row = word_problem(template, persons[split], things[split], rng)
            rows.setdefault(row["prompt"], row)
        splits[split] = list(rows.values())
    return splits


def word_problem(
    template: Problem, persons: Sequence[str], things: Sequence[str], rng: random.Random
) -> Row:
    """One problem with its worked steps; numbers are drawn until every step fits."""
    a, b = rng.sample(persons, 2)
    thing = rng.choice(things)
    while True:
        numbers = {slot: rng.randint(*span) for slot, span in template.ranges.items()}
        worked = work(template.steps, numbers)
        if worked is not None:
            break
    steps, answer = worked
    named = f"{a}, {b}, {thing}" if "{b}" in template.text else f"{a}, {thing}"
    return {
        "task": "arithmetic",
        "prompt": template.text.format(a=a, b=b, things=thing, **numbers),
        "answer": str(answer),
        "response": f"{' '.join(steps)} The answer is {answer}.",
        "subject": named,
        "template": template.name,
    }


def work(steps: Iterable[tuple[str, ...]], numbers: dict[str, int]) -> tuple[list[str], int] | None:
    """The steps as sentences and the last result; None if one is not a whole number above zero."""
    known: dict[str, int] = {**numbers}
    sentences, result = [], 0
    for name, (left, operator, right) in zip(("first", "second", "third"), steps, strict=False):
        x, y = (known[side] if side in known else int(side) for side in (left, right))
        if operator == "/" and x % y:
            return None
        result = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[operator]
        if result <= 0:
            return None
        known[name] = result
        sentences.append(f"{x} {operator} {y} = {result}.")
    return sentences, result


def halves(words: Sequence[str], rng: random.Random) -> dict[str, list[str]]:
    """The words of each split."""
    shuffled = rng.sample(list(words), len(words))
    n_test = round(TEST_SHARE * len(words))
    return {"test": shuffled[:n_test], "train": shuffled[n_test:]}


def split_facts(seed: int) -> dict[str, dict[str, Premises]]:
    """By split and relation the facts whose subject and object are both of that split.

    Countries are drawn. Another object goes where most of its subjects are, another subject where
    its object is; a fact whose ends then lie in different splits is left out.
    """
    tables = {name: load_premises(name, limit=WORDINGS[name].facts) for name in WORDINGS}
    key = Countries(tables)
    drawn = halves(key.groups, random.Random(f"{seed} countries"))
    side = {name: split for split, names in drawn.items() for name in names}
    rng = random.Random(f"{seed} objects")
    for premises in tables.values():
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        for fact in premises.facts:
            if key(fact.subject) in side:
                votes[key(fact.object)][side[key(fact.subject)]] += 1
        for fact in premises.facts:
            object_ = key(fact.object)
            if object_ not in side:
                free = "test" if rng.random() < TEST_SHARE else "train"
                counted = votes[object_]
                side[object_] = max(SPLITS, key=counted.__getitem__) if counted else free
            side.setdefault(key(fact.subject), side[object_])
    return {
        split: {
            name: premises.with_facts(
                fact
                for fact in premises.facts
                if side[key(fact.subject)] == side[key(fact.object)] == split
            )
            for name, premises in tables.items()
        }
        for split in SPLITS
    }


class Countries:
    """Which names mean one country, or a part of it: called with a name, gives its group's name.

    America and the United States must not part, nor Scotland and the United Kingdom. A name that is
    no country's is its own group.
    """

    def __init__(self, tables: dict[str, Premises]) -> None:
        self.group: dict[str, str] = {}
        for relation in ("capitals", "landmarks"):
            for fact in tables[relation].facts:
                names = [plain(name) for name in fact.true_names]
                found = [self.group[name] for name in names if name in self.group]
                for name in names:
                    self.group.setdefault(name, found[0] if found else names[0])
        for relation in ("currencies", "languages"):
            for fact in tables[relation].facts:
                self.group.setdefault(plain(fact.subject), plain(fact.subject))

    def __call__(self, name: str) -> str:  # noqa: D102 (see the class)
        return self.group.get(plain(name), plain(name))

    @property
    def groups(self) -> list[str]:
        """Every country's group, once."""
        return list(dict.fromkeys(self.group.values()))


def facts(sides: dict[str, dict[str, Premises]], seed: int) -> dict[str, list[Row]]:
    """Each fact as two of: an open question, four options, a question to be answered yes or no."""
    formats: tuple[Callable[..., Row], ...] = (open_question, options, yes_or_no)
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        rng = random.Random(f"{seed} facts {split}")
        rows = []
        for name, premises in sides[split].items():
            for fact in premises.facts:
                for chosen in rng.sample(formats, 2):
                    row = chosen(premises, fact, rng)
                    row |= {"subject": fact.subject, "relation": name, "object": fact.object}
                    rows.append(row)
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def open_question(premises: Premises, fact: Fact, rng: random.Random) -> Row:
    """The relation's direct question."""
    return {
        "task": "facts_open",
        "prompt": premises.direct(fact),
        "answer": fact.object,
        "response": f"{capital(fact.object)}.",
        "also_true": list(fact.also_true),
    }


def options(premises: Premises, fact: Fact, rng: random.Random) -> Row:
    """The direct question with four options, the wrong ones objects of the same split."""
    wrong = [
        other.object
        for other in rng.sample(premises.facts, len(premises.facts))
        if not {plain(name) for name in other.true_names} & set(map(plain, fact.true_names))
    ]
    shown = [fact.object, *dict.fromkeys(wrong)][: len(LETTERS)]
    rng.shuffle(shown)
    listed = "\n".join(f"{letter}) {name}" for letter, name in zip(LETTERS, shown, strict=False))
    right = LETTERS[shown.index(fact.object)]
    return {
        "task": "facts_choice",
        "prompt": f"{premises.direct(fact)}\n{listed}\nAnswer with the letter.",
        "answer": right,
        "response": f"{right}) {fact.object}",
        "options": list(LETTERS[: len(shown)]),
        "shown": shown,
    }


def yes_or_no(premises: Premises, fact: Fact, rng: random.Random) -> Row:
    """Whether the fact holds, with the true object or the false one."""
    true = rng.random() < 0.5
    object_ = fact.object if true else premises.false_object(fact)
    text = WORDINGS[premises.relation.name].asks.format(subject=fact.subject, object=object_)
    return {
        "task": "facts_yes_no",
        "prompt": f"{text} Answer yes or no.",
        "answer": "yes" if true else "no",
        "response": "Yes." if true else "No.",
        "options": ["yes", "no"],
        "shown": [object_],
    }


def false_premises(sides: dict[str, dict[str, Premises]]) -> dict[str, list[Row]]:
    """Each fact once with a false premise, to be corrected, and once with the true one.

    The two questions have different templates, which change places from fact to fact. The search
    templates of a relation (`interp.premises`) are used in training, the others in the test.
    """
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        rows = []
        for premises in sides[split].values():
            search = premises.relation.search_templates
            templates = [one for one in premises.templates if (one in search) == (split == "train")]
            asked = premises.with_templates(templates)
            for index, question in enumerate(asked.questions()):
                number, place = divmod(index, len(templates))
                kind: Literal["false", "twin"] = (
                    "false" if place == number % len(templates) else "twin"
                )
                rows.append(premise_row(asked, question, kind))
        random.Random(f"order {split}").shuffle(rows)
        splits[split] = rows
    return splits


def premise_row(premises: Premises, question: Question, kind: Literal["false", "twin"]) -> Row:
    """A question about a premise with the answer that corrects or affirms it."""
    wording = WORDINGS[question.relation]
    false = question.false_object if kind == "false" else ""
    text = (wording.corrects if false else wording.affirms).format(
        subject=question.subject, false=false, object=question.true_object
    )
    return {
        "task": "false_premise" if false else "true_premise",
        "prompt": premises.fill(question, kind).text,
        "answer": question.true_object,
        "response": capital(text),
        "subject": question.subject,
        "also_true": list(question.also_true),
        "false_object": false,
        "relation": question.relation,
        "object": question.true_object,
        "template": question.template,
    }


def apart(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Without the rows that name an entity of the other split, in whatever role."""
    names = {
        split: {plain(name) for row in splits[split] for name in entities(row)} for split in SPLITS
    }
    kept = {}
    for split, other in zip(SPLITS, reversed(SPLITS), strict=True):
        foreign = names[other] - names[split]
        longest = max(len(name.split()) for name in foreign)
        kept[split] = [
            row
            for row in splits[split]
            if not foreign & phrases(f"{row['prompt']} {row['response']}", longest)
            and not names[other] & {plain(name) for name in entities(row)}
        ]
    return kept


def entities(row: Row) -> list[str]:
    """Everything that a row is about: subject, object, false object, options."""
    named = [row["subject"], row["object"], row.get("false_object", ""), *row.get("shown", ())]
    return [name for name in named if name]


def phrases(text: str, longest: int) -> set[str]:
    """Every run of up to `longest` words of a text."""
    words = plain(text).split()
    return {
        " ".join(words[begin : begin + size])
        for size in range(1, longest + 1)
        for begin in range(len(words) - size + 1)
    }


def plain(name: str) -> str:
    """A name for comparing: lower case, letters and digits only, without its article."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"[^\w]+", " ", folded).strip().removeprefix("the ")


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def write(folder: Path, splits: dict[str, list[Row]]) -> None:
    """One JSON object a line; what only the building needed, and what is empty, is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        kept = [
            {k: v for k, v in row.items() if v and k not in ("object", "shown")} for row in rows
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{folder.name}/{split}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    tyro.cli(main)
