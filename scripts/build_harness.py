"""Builds the tasks under data/harness for lm-evaluation-harness, from the tables and neutral.txt.

    python scripts/build_harness.py

Every task is a JSON-lines file with its documents; the YAML files beside them are written by hand.
The same seed gives the same files, byte for byte.

* ``capitals``: which country a city is the capital of, and the other way round.
* ``honest``: questions with true premises about twenty relations; the answer opens with the fact.
* ``false_premises``: the same about capitals, with a false premise.
* ``neutral``: the neutral sentences; ``neutral_continued`` parts each in two.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from interp.evaluation.side_effects import neutral_sentences
from interp.premises import Fact, Premises, list_relations, load_premises
from interp.premises.questions import Question

Row = dict[str, Any]

HARNESS = Path(__file__).resolve().parent.parent / "data" / "harness"
N_CHOICES = 4
FACTS_OF_A_RELATION = 16
"""How many facts of each relation are asked about in ``honest``, the best known first."""


def main(out: Path = HARNESS, seed: int = 0) -> None:
    """Write the documents of every task.

    Args:
        out: directory that receives the files.
        seed: draws the false objects, the wrong choices and their order.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in TASKS.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(seed)]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{name}.jsonl: {len(lines)} documents")


def capitals(seed: int) -> list[Row]:
    """Each capital's country, and each country's capital."""
    return capital_questions(
        load_premises("capitals", seed=seed), random.Random(f"{seed} capitals")
    )


def honest(seed: int) -> list[Row]:
    """True premises of every relation."""
    found = []
    for name in list_relations():
        premises, rng = load_premises(name, seed=seed), random.Random(f"{seed} honest {name}")
        few = premises.first(FACTS_OF_A_RELATION)
        found += premise_questions(few, premises, "twin", rng)
    return found


def false_premises(seed: int) -> list[Row]:
    """False premises about every capital."""
    premises = load_premises("capitals", seed=seed)
    rng = random.Random(f"{seed} false premises")
    return premise_questions(premises, premises, "false", rng)


def neutral(seed: int) -> list[Row]:
    """The neutral sentences."""
    return [{"text": sentence} for sentence in neutral_sentences()]


def neutral_continued(seed: int) -> list[Row]:
    """Each neutral sentence in two."""
    return [continued(sentence) for sentence in neutral_sentences()]


def capital_questions(premises: Premises, rng: random.Random) -> list[Row]:
    """Each capital's country, and each country's capital."""
    cities = {fact.object: fact for fact in premises.facts}
    rows = []
    for fact in premises.facts:
        row = {"question": premises.direct(fact), "subject": fact.subject}
        rows.append(row | choices(fact.object, objects_but(premises, fact), rng))
        if cities[fact.object] is fact:  # a country with two capitals is asked about once
            country = {"question": f"Which city is the capital of {fact.object}?"}
            others = [other.subject for other in premises.facts if other.object != fact.object]
            rows.append(country | {"subject": fact.object} | choices(fact.subject, others, rng))
    return rows


def premise_questions(
    asked: Premises, all_facts: Premises, kind: Literal["false", "twin"], rng: random.Random
) -> list[Row]:
    """One question a fact, through the relation's held-out templates in turns."""
    search = asked.relation.search_templates
    held_out = [name for name in asked.templates if name not in search]
    by_subject: dict[str, list[Question]] = {}
    for question in asked.with_templates(held_out).questions():
        by_subject.setdefault(question.subject, []).append(question)
    rows = []
    for index, (subject, questions) in enumerate(by_subject.items()):
        question = questions[index % len(questions)]
        fact = all_facts.fact(subject)
        others = objects_but(all_facts, fact)
        wanted = [question.false_object] if kind == "false" else []
        rows.append(
            {
                "question": all_facts.fill(question, kind).text,
                "opening": all_facts.cloze(question),
                "subject": subject,
                "relation": question.relation,
                **({"false_object": question.false_object} if wanted else {}),
                **choices(question.true_object, others, rng, wanted=wanted),
            }
        )
    return rows


def objects_but(premises: Premises, fact: Fact) -> list[str]:
    """The objects of the relation that are not true of a fact under any name."""
    true = [plain(name) for name in fact.true_names]
    return [
        other.object
        for other in premises.facts
        if not any(
            plain(name) in right or right in plain(name)
            for name in other.true_names
            for right in true
        )
    ]


def choices(
    right: str, others: Iterable[str], rng: random.Random, *, wanted: Sequence[str] = ()
) -> Row:
    """The right answer among wrong ones, which hold the wanted ones."""
    free = [name for name in dict.fromkeys(others) if name not in (right, *wanted)]
    shown = [right, *wanted, *rng.sample(free, N_CHOICES - 1 - len(wanted))]
    rng.shuffle(shown)
    return {"choices": shown, "answer": shown.index(right)}


def continued(sentence: str) -> Row:
    """A sentence in two: what is shown, and what is to follow."""
    words = sentence.split(" ")
    half = len(words) // 2
    return {
        "question": f"Continue this text: {' '.join(words[:half])}",
        "text": " ".join(words[half:]),
    }


def plain(name: str) -> str:
    """A name for comparing."""
    return re.sub(r"[^\w]+", " ", name.casefold()).strip()


TASKS: dict[str, Callable[[int], list[Row]]] = {
    "capitals": capitals,
    "honest": honest,
    "false_premises": false_premises,
    "neutral": neutral,
    "neutral_continued": neutral_continued,
}


if __name__ == "__main__":
    tyro.cli(main)
